"""Train a small Mixtral on the train splits of corpora: next-token loss plus one balance loss per layer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from lumoe.moe.training.expert_batch import batch_experts
from lumoe.moe.training.muon import Muon
from lumoe.moe.training.state import load_state, save_state
from lumoe.moe.training.stream import batches
from lumoe.progress import track


@dataclass(frozen=True)
class TrainingSettings:
    """The shape of the model and the course of its training."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    experts: int
    sequence: int
    batch: int
    steps: int
    learning_rate: float
    warmup: int
    decay: float
    weight_decay: float
    balance: float
    final_balance: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """The losses of one step: nats per token, and the balance loss (1 = perfectly balanced)."""

    step: int
    loss: float
    balance: float
    learning_rate: float


def new_model(settings: TrainingSettings, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return an untrained Mixtral of the given shape, float32, initialised from the seed."""
    config = MixtralConfig(  # type: ignore[no-untyped-call]
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.intermediate,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.key_value_heads,
        num_local_experts=settings.experts,
        num_experts_per_tok=2,
        max_position_embeddings=settings.sequence,
        sliding_window=None,
        rope_theta=1e4,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(settings.seed)
    model: Any = MixtralForCausalLM(config)  # type: ignore[no-untyped-call]
    return model.float()


def new_optimizers(model: Any, settings: TrainingSettings) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of attention and experts, and AdamW for routers, embeddings, head and norms."""
    matrices = [p for name, p in model.named_parameters() if ".self_attn." in name or ".experts." in name]
    tables = [p for name, p in model.named_parameters() if name.endswith(("gate.weight", "lm_head.weight"))]
    chosen = {id(parameter) for parameter in (*matrices, *tables)}
    others = [p for p in model.parameters() if id(p) not in chosen]
    decay = settings.weight_decay
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    return [Muon(matrices, weight_decay=decay), adamw]


def rate_at(step: int, settings: TrainingSettings) -> float:
    """Return the learning rate of a step: linear warm-up, constant, then linear to zero over the share `decay`.

    Until the decay begins the rate does not depend on the number of steps: a run can be made longer or shorter.
    """
    warm = min(1.0, (step + 1) / settings.warmup) if settings.warmup else 1.0
    return settings.learning_rate * min(warm, decay_left(step, settings))


def decay_left(step: int, settings: TrainingSettings) -> float:
    """Return 1 before the decay, and during it the share of it that is left."""
    return min(1.0, (settings.steps - step) / max(1.0, settings.steps * settings.decay))


def balance_at(step: int, settings: TrainingSettings) -> float:
    """Return the weight of the balance loss: constant, then linear to its final value while the rate decays.

    Early on a strong pull towards equal loads keeps experts from becoming different; late, routing has settled and
    small steps need a stronger pull to even it out.
    """
    left = decay_left(step, settings)
    return left * settings.balance + (1 - left) * settings.final_balance


def balance_loss(router_logits: Sequence[Tensor], top_k: int) -> Tensor:
    """Return the load-balancing loss, 1 where every expert of every layer is used alike, more otherwise.

    Fedus et al. 2021 (Switch Transformers, arXiv 2101.03961), eq. 4, for each layer by itself. The loss that comes with
    transformers pools all layers, so that one layer may starve an expert that another one overuses.

    Args:
        router_logits: [tokens, experts] for each layer.
        top_k: experts per token.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.softmax(dim=-1)
        chosen = probabilities.topk(top_k, dim=-1).indices
        used = torch.bincount(chosen.flatten(), minlength=logits.shape[-1]) / chosen.numel()
        losses.append(logits.shape[-1] * (used * probabilities.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def train(
    settings: TrainingSettings,
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    checkpoint: Path | None = None,
    save_every: int = 200,
    report: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Any, list[Progress], float]:
    """Train from scratch, or from `checkpoint` where it holds the state of the same training.

    Args:
        checkpoint: file of the state of training, replaced every `save_every` steps.
        report: called after every step.

    Returns:
        The model, the losses of all steps, and the seconds spent training, over all sittings.
    """
    model = new_model(settings, tokenizer)
    optimizers = new_optimizers(model, settings)
    history: list[Progress] = []
    seconds = 0.0
    state = _state(checkpoint, settings)
    if state is not None:
        parameters, saved, record = state
        model.load_state_dict(parameters)
        for optimizer, values in zip(optimizers, saved, strict=True):
            optimizer.load_state_dict(values)
        history = [Progress(**row) for row in record["history"]]
        seconds = record["seconds"]
    batch_experts(model).train()
    started = time.monotonic() - seconds
    stream = batches(
        tokenizer,
        documents,
        sequence=settings.sequence,
        batch=settings.batch,
        seed=settings.seed,
        skip=len(history),
    )
    for step in track(range(len(history), settings.steps), "steps"):
        rate = rate_at(step, settings)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss, balance = _step(model, next(stream), balance_at(step, settings))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        history.append(Progress(step, loss, balance, rate))
        report(history[-1])
        if checkpoint is not None and (step + 1) % save_every == 0:
            _save(checkpoint, settings, model, optimizers, history, time.monotonic() - started)
    return model, history, time.monotonic() - started


def _step(model: Any, batch: Tensor, balance_weight: float) -> tuple[float, float]:
    output = model(input_ids=batch[:, :-1], output_router_logits=True, use_cache=False)
    loss = functional.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
    balance = balance_loss(output.router_logits, model.config.num_experts_per_tok)
    torch.autograd.backward(loss + balance_weight * balance)
    if not math.isfinite(loss.item()):
        raise FloatingPointError("the training loss is not finite; a lower learning rate may help")
    return loss.item(), balance.item()


def _save(
    path: Path,
    settings: TrainingSettings,
    model: Any,
    optimizers: Sequence[torch.optim.Optimizer],
    history: list[Progress],
    seconds: float,
) -> None:
    record = {"settings": asdict(settings), "history": [asdict(row) for row in history], "seconds": seconds}
    save_state(path, model, optimizers, record)


def _state(
    path: Path | None, settings: TrainingSettings
) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]] | None:
    """Return the saved state where it lies on the course that `settings` describe, else None."""
    if path is None or not path.is_file():
        return None
    state = load_state(path)
    record = state[2]
    # What only the decay depends on may change until the decay begins.
    course = {name: getattr(settings, name) for name in ("steps", "decay", "final_balance")}
    rates = [(row["learning_rate"], rate_at(row["step"], settings)) for row in record["history"]]
    same = record["settings"] | course == asdict(settings) and all(saved == planned for saved, planned in rates)
    return state if same and len(rates) <= settings.steps else None

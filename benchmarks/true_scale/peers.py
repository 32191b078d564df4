"""accelerate's offload of the same shape at the same memory: whole layers on the device, the others in host memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.true_scale import machine
from benchmarks.true_scale.model import RandomWeights, check_host, fill_from, hash_of
from benchmarks.true_scale.table import Table
from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Architecture

KEY = ("peer", "batch", "budget_bytes")
COLUMNS = (
    *KEY, "prompt_tokens", "new_tokens", "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "first_token_s",
    "decode_tokens_per_s", "layers_on_device", "allocated_bytes", "repeats", *machine.COLUMNS, "basis",
)  # fmt: skip
PEER = "accelerate"


def run(
    architecture: Architecture, device: torch.device, budgets: Sequence[int], batches: Sequence[int], repeats: int,
    about: dict[str, str], table: Table, host_bytes: int | None, left_s: Callable[[], float],
    say: Callable[[str], None], prompt_tokens: int = 16, new_tokens: int = 16,
) -> int:  # fmt: skip
    """Time transformers' Mixtral under accelerate's dispatch at each budget; return how many rows are left."""
    todo = missing(budgets, batches, table)
    if not todo:
        return 0
    check_host(architecture.bytes_full, host_bytes)
    network = build(architecture)
    say(f"{PEER}: built {architecture.bytes_full / 1e9:.1f} GB of 16-bit weights")
    longest = 0.0
    for number, row in enumerate(todo):
        if left_s() < 1.5 * longest + 5:
            return len(todo) - number
        began = time.perf_counter()
        placed = dispatch(network, device, row["budget_bytes"])
        timings = [
            _generate(network, architecture, device, row["batch"], prompt_tokens, new_tokens) for _ in range(repeats)
        ]
        made = row["batch"] * new_tokens
        speeds = [made / total for total, _ in timings]
        first = float(np.median([first for _, first in timings]))
        rest = float(np.median([total - first for total, first in timings]))
        table.add(
            {
                **row,
                "prompt_tokens": prompt_tokens,
                "new_tokens": new_tokens,
                "tokens_per_s": float(np.median(speeds)),
                "tokens_per_s_min": min(speeds),
                "tokens_per_s_max": max(speeds),
                "first_token_s": first,
                "decode_tokens_per_s": row["batch"] * (new_tokens - 1) / rest if new_tokens > 1 else np.nan,
                "layers_on_device": placed,
                "allocated_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else np.nan,
                "repeats": repeats,
                **about,
                "basis": "measured",
            }
        )
        longest = max(longest, time.perf_counter() - began)
        say(f"{PEER}, batch {row['batch']}, {row['budget_bytes'] / 1e9:.2f} GB: {np.median(speeds):.3g} tokens/s")
    return 0


def missing(budgets: Sequence[int], batches: Sequence[int], table: Table) -> list[dict[str, Any]]:
    """Return the keys of the rows that the table lacks."""
    wanted = [{"peer": PEER, "batch": batch, "budget_bytes": budget} for budget in budgets for batch in batches]
    return [row for row in wanted if row not in table]


def build(architecture: Architecture) -> Any:
    """Return transformers' Mixtral of a shape with random weights in host memory, whatever its version calls them."""
    from accelerate import init_empty_weights
    from transformers import MixtralConfig, MixtralForCausalLM

    names = (
        "num_hidden_layers", "num_local_experts", "num_experts_per_tok", "hidden_size", "intermediate_size",
        "num_attention_heads", "num_key_value_heads", "vocab_size", "rms_norm_eps", "max_position_embeddings",
    )  # fmt: skip
    config = MixtralConfig(**{name: getattr(architecture, name) for name in names}, head_dim=architecture.head_width)
    with init_empty_weights():
        network = MixtralForCausalLM(config)
    block = RandomWeights(architecture).normal
    for name, parameter in list(network.named_parameters()):
        value = torch.empty(parameter.shape, dtype=torch.bfloat16)
        if "norm" in name:
            value.fill_(1.0)
        else:
            fill_from(value, block, hash_of(name))
        owner, _, last = name.rpartition(".")
        setattr(network.get_submodule(owner), last, torch.nn.Parameter(value, requires_grad=False))
    _check_whole(network)
    return network.eval()


def _check_whole(network: Any) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_meta:
            raise UserError(f"{PEER}: transformers left '{name}' without memory; this version builds models otherwise")


def dispatch(network: Any, device: torch.device, budget: int) -> int:
    """Give whole layers to the device until the budget is spent, the rest stays in host memory; return how many.

    Raises:
        UserError: nothing of the model fits.
    """
    from accelerate import cpu_offload, dispatch_model, infer_auto_device_map
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(network, recurse=True)
    if device.type == "cpu":  # tests: the hooks run, everything stays where it is
        cpu_offload(network, execution_device=device)
        return 0
    network.to("cpu")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    limits = {device.index or 0: budget, "cpu": 1 << 50}
    places = infer_auto_device_map(network, limits, no_split_module_classes=["MixtralDecoderLayer"])
    if "disk" in places.values():
        raise UserError(f"{PEER}: places layers on disk at {budget} bytes; that is another comparison")
    dispatch_model(network, places, main_device=device.index or 0)
    return sum(place != "cpu" for name, place in places.items() if "layers." in name)


@torch.inference_mode()
def _generate(
    network: Any, architecture: Architecture, device: torch.device, batch: int, prompt_tokens: int, new_tokens: int
) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, architecture.vocab_size, (batch, prompt_tokens), generator=generator).to(device)
    _settle(device)
    began = time.perf_counter()
    out = network(ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1].argmax(-1, keepdim=True)
    _settle(device)
    first = time.perf_counter()
    kept = "cache" if hasattr(out, "cache") else "past_key_values"  # so named in later versions 5 of transformers
    for _ in range(new_tokens - 1):
        out = network(token, use_cache=True, logits_to_keep=1, **{kept: getattr(out, kept)})
        token = out.logits[:, -1].argmax(-1, keepdim=True)
    _settle(device)
    return time.perf_counter() - began, first - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)

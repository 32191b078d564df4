"""Held-out text: the next-token loss of a causal model over disjoint windows, and how its routers share the work."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional


def windows(ids: list[int], window: int, limit: int | None = None) -> Tensor:
    """Cut `ids` into disjoint windows [count, window]; the tail is dropped."""
    count = len(ids) // window
    count = count if limit is None else min(count, limit)
    return torch.tensor(ids[: count * window], dtype=torch.long).view(count, window)


def predicted_positions(count: int, window: int) -> NDArray[np.int64]:
    """Return the stream positions that windows predict: all but the first of each, which has no context."""
    return np.arange(count * window).reshape(count, window)[:, 1:].reshape(-1)


@torch.inference_mode()
def evaluate(model: Any, batch: Tensor, at_once: int = 16) -> tuple[float, NDArray[np.int64]]:
    """Return the mean negative log-likelihood and the expert loads of a Mixtral model on windows of tokens.

    Args:
        model: a `MixtralForCausalLM`.
        batch: [count, window] token ids.
        at_once: windows per forward pass.

    Returns:
        Nats per predicted token, and how many (token, choice) pairs each expert served, [layers, experts].
    """
    config = model.config
    loads = np.zeros((config.num_hidden_layers, config.num_local_experts), dtype=np.int64)
    total = 0.0
    for part in torch.split(batch, at_once):
        output = model(input_ids=part, output_router_logits=True, use_cache=False)
        logits = output.logits[:, :-1].float()
        total += float(functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
        for layer, router in enumerate(output.router_logits):
            chosen = router.topk(config.num_experts_per_tok, dim=-1).indices
            loads[layer] += np.bincount(chosen.flatten().numpy(), minlength=config.num_local_experts)
    return total / batch[:, 1:].numel(), loads


def least_share(loads: NDArray[np.int64]) -> float:
    """Return the smallest load of any expert of any layer as a fraction of its fair share (1 = perfectly balanced)."""
    shares = loads / loads.sum(axis=1, keepdims=True)
    return float(shares.min() * loads.shape[1])

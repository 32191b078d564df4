"""Mixtral's expert block with the tokens of an expert multiplied together: same parameters, same numbers, less time."""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock


def batched_forward(block: MixtralSparseMoeBlock, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a Mixtral expert block with its tokens sorted by expert.

    The stock block of transformers gathers each expert's tokens through a mask over all (token, choice) pairs. One sort
    makes them contiguous, so that each expert is three dense products.

    Args:
        block: supplies the router and the experts.
        hidden_states: [batch, sequence, hidden].

    Returns:
        The block's output [batch, sequence, hidden] and the router logits [batch * sequence, experts].
    """
    batch, sequence, hidden = hidden_states.shape
    tokens = hidden_states.reshape(-1, hidden)
    logits = block.gate(tokens)
    weights, chosen = functional.softmax(logits, dim=-1, dtype=torch.float).topk(block.top_k, dim=-1)
    weights = (weights / weights.sum(dim=-1, keepdim=True)).to(tokens.dtype)

    expert_of_row, order = chosen.flatten().sort(stable=True)
    rows = tokens[order // block.top_k]
    counts = torch.bincount(expert_of_row, minlength=block.num_experts).tolist()
    outputs = [expert(part) for expert, part in zip(block.experts, torch.split(rows, counts), strict=True)]
    by_choice = torch.cat(outputs)[order.argsort()].view(-1, block.top_k, hidden)
    return (by_choice * weights.unsqueeze(-1)).sum(dim=1).view(batch, sequence, hidden), logits


def batch_experts(model: nn.Module) -> nn.Module:
    """Make every Mixtral expert block of `model` use `batched_forward`; parameters and their names stay as they are."""
    for module in model.modules():
        if isinstance(module, MixtralSparseMoeBlock):
            setattr(module, "forward", MethodType(batched_forward, module))  # noqa: B010
    return model

"""What each expert sees: calibration text walked through the model layer by layer, one expert in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.model.attention import Positions, Rotary
from lumoe.moe.model.decoder import Decoder, rms_norm
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.moe_layer import route

_SEQUENCES_AT_ONCE = 16


@dataclass(frozen=True)
class LayerInputs:
    """What reaches one layer's experts.

    Attributes:
        hidden: float32 `[tokens, hidden]`, after the norm.
        weights, chosen: the router's weights and experts, `[tokens, k]`.
    """

    layer: int
    hidden: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states `[n, hidden]` and router weights `[n]` of the tokens routed to `expert`."""
        token, slot = torch.where(self.chosen == expert)
        return self.hidden[token], self.weights[token, slot]


def fingerprint(tokens: torch.Tensor) -> str:
    """Return a hash of the calibration tokens."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]


@torch.inference_mode()
def walk(checkpoint: Checkpoint, tokens: torch.Tensor) -> Iterator[LayerInputs]:
    """Yield each layer's expert inputs in turn; all experts run at the checkpoint's precision, computed in float32.

    Memory: the weights outside the experts, one expert, and the hidden states of all tokens.
    """
    decoder = Decoder(checkpoint, torch.float32)
    a = checkpoint.architecture
    rotary = Rotary(a.head_width, a.rope_theta, torch.float32)
    hidden = functional.embedding(tokens, decoder.embedding)
    for index, (before, attention, between, gate) in enumerate(decoder.layers):
        for begin in range(0, len(hidden), _SEQUENCES_AT_ONCE):
            part = hidden[begin : begin + _SEQUENCES_AT_ONCE]
            # Only this layer's pages of the fresh cache are ever touched.
            cache = KVCache(a, len(part), part.shape[1], torch.float32)
            positions = Positions(cache, list(range(len(part))), part.shape[1], rotary, a.sliding_window)
            part += attention(rms_norm(part, before, a.rms_norm_eps), cache, positions)
        normed = rms_norm(hidden, between, a.rms_norm_eps).view(-1, a.hidden_size)
        weights, chosen = route(normed, gate, a.num_experts_per_tok)
        inputs = LayerInputs(index, normed, weights, chosen)
        yield inputs
        if index + 1 < a.num_hidden_layers:
            flat = hidden.view(-1, a.hidden_size)
            for expert in range(a.num_local_experts):
                w1, w2, w3 = (weight.float() for weight in checkpoint.expert(index, expert))
                token, slot = torch.where(chosen == expert)
                rows = normed[token]
                output = (functional.silu(rows @ w1.t()) * (rows @ w3.t())) @ w2.t()
                flat.index_add_(0, token, output * weights[token, slot].unsqueeze(1))

"""What each expert sees: calibration text walked through the model layer by layer, one expert at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.model.attention import Positions
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.expert import MATRICES, DenseExpert
from lumoe.moe.model.feed_forward import FeedForward
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.moe_layer import MoELayer

_SEQUENCES_AT_ONCE = 16


@dataclass(frozen=True)
class LayerInputs:
    """What reaches one layer's experts.

    Attributes:
        layer: whose experts they are.
        hidden: float32 `[tokens, hidden]`, after the norm.
        weights, chosen: the router's weights and experts, `[tokens, k]`.
    """

    layer: MoELayer
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
    hidden = decoder.embed(tokens)
    for layer in decoder.layers:
        for begin in range(0, len(hidden), _SEQUENCES_AT_ONCE):
            part = hidden[begin : begin + _SEQUENCES_AT_ONCE]
            # Only this layer's pages of the fresh cache are ever touched.
            cache = KVCache(checkpoint.architecture, len(part), part.shape[1], torch.float32)
            positions = Positions(cache, list(range(len(part))), part.shape[1], decoder.rotary)
            part.copy_(decoder.add(part, layer.mixer(layer.before(part), cache, positions)))
        normed = layer.between(hidden).view(-1, hidden.shape[-1])
        if isinstance(layer.feed, FeedForward):
            hidden = decoder.add(hidden, layer.feed(normed).view(hidden.shape))
            continue
        inputs = LayerInputs(layer.feed, normed, *layer.feed.router(normed))
        yield inputs
        if layer is not decoder.layers[-1]:
            _add_experts(checkpoint, inputs, hidden.view(-1, hidden.shape[-1]))


def _add_experts(checkpoint: Checkpoint, inputs: LayerInputs, flat: torch.Tensor) -> None:
    """Add what a layer makes of its inputs to the residual stream `[tokens, hidden]`, one expert at a time."""
    layer, scale = inputs.layer, checkpoint.architecture.residual_scale
    for index in range(checkpoint.architecture.num_local_experts):
        weights = (weight.float() for weight in checkpoint.expert(layer.index, index))
        expert = DenseExpert(dict(zip(MATRICES, weights, strict=True)), use_native=False)
        token, slot = torch.where(inputs.chosen == index)
        output = layer.output(index, expert, inputs.hidden[token])
        flat.index_add_(0, token, output * (inputs.weights[token, slot].unsqueeze(1) * scale))
    if layer.shared is not None:
        flat += layer.shared(inputs.hidden) * scale

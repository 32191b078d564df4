"""Gated DeltaNet (arXiv 2412.06464): what a layer remembers is one matrix a head, not keys and values."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from lumoe.moe.architectures.architecture import Delta
from lumoe.moe.model.attention import Positions
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.linear import Linear
from lumoe.moe.model.norm import Norm

# Tokens whose updates are solved for together: the work of a chunk grows with the square of it.
CHUNK = 64


@dataclass(frozen=True)
class DeltaWeights:
    """What a layer reads of its own.

    Attributes:
        inputs: to queries, keys, values, the output's gate, and for each value head update rate and decay, in this
            order.
        convolution: of queries, keys and values along tokens, `[channels, tokens]`.
        decay, rate: float32 `[value heads]`; a token's decay is exp(-exp(decay) · softplus(its own + rate)).
        norm: of each head's output, before the gate.
    """

    inputs: Linear
    convolution: torch.Tensor
    decay: torch.Tensor
    rate: torch.Tensor
    norm: Norm
    output: Linear


class DeltaNet:
    """One layer."""

    def __init__(self, index: int, settings: Delta, weights: DeltaWeights) -> None:
        """Take weights.

        Args:
            index: of the layer among those of its kind, as the cache counts their states.
        """
        self.index, self.settings, self._weights = index, settings, weights

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        w = self._weights
        small = w.convolution.nbytes + w.decay.nbytes + w.rate.nbytes
        return w.inputs.nbytes + small + w.norm.nbytes + w.output.nbytes

    def __call__(self, hidden: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        """Map `[sequences, tokens, hidden]` to the same shape, and let the sequences' states go on by these tokens."""
        s, w = self.settings, self._weights
        count, tokens, _ = hidden.shape
        sizes = [s.channels, s.value_heads * s.value, s.value_heads, s.value_heads]
        mixed, gate, rate, decay = torch.split(w.inputs(hidden), sizes, dim=-1)
        assert cache.states is not None
        recent, memory = cache.states.of(self.index, positions.slots, positions.begun)
        window = torch.cat((recent.to(mixed.dtype), mixed.transpose(1, 2)), dim=-1)
        kept = window[..., tokens:].float()
        mixed = functional.silu(functional.conv1d(window, w.convolution.unsqueeze(1), groups=s.channels))
        widths = [s.key_heads * s.key, s.key_heads * s.key, s.value_heads * s.value]
        query, key, value = torch.split(mixed.transpose(1, 2), widths, dim=-1)
        repeats = s.value_heads // s.key_heads
        query, key = (_unit(part.reshape(count, tokens, s.key_heads, s.key)) for part in (query, key))
        if s.tiled:
            query, key = query.repeat(1, 1, repeats, 1), key.repeat(1, 1, repeats, 1)
        else:
            query, key = query.repeat_interleave(repeats, dim=2), key.repeat_interleave(repeats, dim=2)
        value = value.reshape(count, tokens, s.value_heads, s.value)
        fading = -w.decay.exp() * functional.softplus(decay.float() + w.rate)
        parts = [part.transpose(1, 2).float() for part in (query * s.key**-0.5, key, value)]
        found, memory = gated_delta_rule(
            parts[0], parts[1], parts[2], fading.transpose(1, 2), rate.sigmoid().float().transpose(1, 2), memory
        )
        cache.states.put(self.index, positions.slots, kept, memory)
        normed = w.norm(found.transpose(1, 2).to(hidden.dtype)).float()
        gated = normed * functional.silu(gate.reshape(normed.shape).float())
        return w.output(gated.to(hidden.dtype).flatten(2))


def _unit(part: torch.Tensor) -> torch.Tensor:
    return part * torch.rsqrt(part.square().sum(dim=-1, keepdim=True) + 1e-6)


def gated_delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    rate: torch.Tensor,
    memory: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what queries find, `[sequences, heads, tokens, value]`, and the memory after the last token.

    Token by token the memory S becomes a·S + k ⊗ r·(v - (a·S)ᵀk), and a query finds Sᵀq (arXiv 2412.06464, eq. 10). The
    updates u = r·(v - …) of a chunk depend on one another linearly: a triangular system gives them at once.

    Args:
        query, key: `[sequences, heads, tokens, key]`; value: `[sequences, heads, tokens, value]`.
        decay: log of a, `[sequences, heads, tokens]`; rate: r, of the same shape.
        memory: `[sequences, heads, key, value]`.
    """
    found = []
    for begin in range(0, query.shape[2], CHUNK):
        q, k, v = (part[:, :, begin : begin + CHUNK] for part in (query, key, value))
        r = rate[:, :, begin : begin + CHUNK].unsqueeze(-1)
        faded = decay[:, :, begin : begin + CHUNK].cumsum(dim=-1)
        since = faded.unsqueeze(-1) - faded.unsqueeze(-2)
        earlier = torch.ones(since.shape[-2:], dtype=torch.bool).tril()
        kept = since.masked_fill(~earlier, -torch.inf).exp()
        whole = faded.exp().unsqueeze(-1)
        # The diagonal of this product is not looked at: it counts as 1.
        system = r * kept * (k @ k.transpose(-1, -2))
        updates = torch.linalg.solve_triangular(system, r * (v - whole * (k @ memory)), upper=False, unitriangular=True)
        found.append(whole * (q @ memory) + (kept * (q @ k.transpose(-1, -2))) @ updates)
        last = (faded[..., -1:] - faded).exp().unsqueeze(-1)
        memory = whole[:, :, -1:] * memory + (k * last).transpose(-1, -2) @ updates
    return torch.cat(found, dim=2), memory

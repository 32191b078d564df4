"""Grouped-query and latent attention over a cache of keys and values, for sequences of unlike lengths."""

from __future__ import annotations

from typing import Protocol

import torch
from torch.nn import functional

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.kernels.steps import Step
from lumoe.moe.model.kv_cache import KVCache, Places
from lumoe.moe.model.linear import Linear
from lumoe.moe.model.norm import Norm
from lumoe.moe.model.rotary import Rotary


class Positions:
    """What one forward pass needs to know about positions: computed once, used by every layer.

    Attributes:
        places: where the new tokens' keys and values go, and where those before them are.
        fresh: whether the new tokens are the first ones of every sequence: nothing is before them.
        slots, begun: of the sequences, and whether something is before the new tokens of each.
    """

    def __init__(self, cache: KVCache, slots: list[int], tokens: int, rotary: Rotary) -> None:
        starts = [cache.lengths[slot] for slot in slots]
        for slot, start in zip(slots, starts, strict=True):
            cache.reserve(slot, start + tokens)
        self.places: Places = cache.places(slots, tokens)
        self.slots, self.begun = slots, [start > 0 for start in starts]
        positions = self.places.lengths.unsqueeze(1) - 1
        if tokens > 1:
            positions = positions + torch.arange(1 - tokens, 1)
        self.cosine, self.sine = rotary.at(positions, self.places.longest - 1)
        self._positions, self._starts, self._tokens = positions, starts, tokens
        self.fresh = not any(starts)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def step(self, cache: KVCache) -> Step | None:
        """Return what kernels of a whole layer are told, if there is one new token of each sequence."""
        return cache.step(self.places, self.cosine, self.sine)

    def causal(self, window: int | None) -> bool:
        """Whether every token sees all up to itself, and there are no others."""
        return self.fresh and self._tokens > 1 and not self._clipped(window)

    def mask(self, window: int | None) -> torch.Tensor | None:
        """Return which keys each token sees, bool `[sequences, 1, tokens, keys]`.

        None where all see all keys, or all up to themselves.
        """
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _clipped(self, window: int | None) -> bool:
        return window is not None and self.places.longest > window

    def _mask(self, window: int | None) -> torch.Tensor | None:
        alike = self._tokens == 1 and len({*self._starts}) == 1 and not self._clipped(window)
        if self.causal(window) or alike:
            return None
        key, own = torch.arange(self.places.longest), self._positions.unsqueeze(-1)
        mask = key <= own
        if window is not None:
            mask &= key > own - window
        return mask.unsqueeze(1)


class Mixer(Protocol):
    """A layer's attention, of either kind."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self, hidden: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        """Map `[sequences, tokens, hidden]` to the same shape, appending keys and values to the cache."""
        ...


class Attention:
    """One layer's grouped-query attention; query, key and value projections are one matrix.

    Attributes:
        norms: of queries and keys, float `[heads + key-value heads, width]`, if they are normalised.
        sinks: logits without a value, `[heads]`, if there are any.
    """

    def __init__(
        self,
        index: int,
        architecture: Architecture,
        projection: Linear,
        output: Linear,
        norms: torch.Tensor | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Take projections.

        Args:
            index: of the layer in the model.
        """
        a = architecture
        # The cache counts the layers that have keys and values.
        self.index = index - sum(layer < index for layer in a.delta_layers)
        self.projection, self.output, self.norms, self.sinks = projection, output, norms, sinks
        self.heads, self.key_value_heads, self.width = a.num_attention_heads, a.num_key_value_heads, a.head_width
        self.settings, self.window, self.epsilon = a.attention, a.window(index), a.rms_norm_eps
        # Kernels divide logits by the square root of a head's width.
        self.scale = 1.0 if a.attention.scale is None else a.attention.scale * self.width**0.5

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        small = sum(tensor.nbytes for tensor in (self.norms, self.sinks) if tensor is not None)
        return self.projection.nbytes + self.output.nbytes + small

    def __call__(self, hidden: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        """Map `[sequences, tokens, hidden]` to the same shape, appending keys and values to the cache."""
        count, tokens, _ = hidden.shape
        heads, shared = self.heads, self.key_value_heads
        mixed = self.projection(hidden)
        gate = None
        if self.settings.output_gate:
            mixed, gate = torch.split(mixed, [mixed.shape[-1] - heads * self.width, heads * self.width], dim=-1)
        mixed = mixed.view(count, tokens, heads + 2 * shared, self.width)
        turned, values = self._turned(mixed[:, :, : heads + shared], positions), mixed[:, :, heads + shared :]
        if self.settings.clip is not None:
            values = values.clamp(-self.settings.clip, self.settings.clip)
        found = None
        if tokens == 1 and self.sinks is None:
            found = cache.decode(self.index, positions.places, turned, values, self.window)
        if found is None:
            found = self._attend(turned, values, cache, positions)
        return self.output(found if gate is None else found * torch.sigmoid(gate))

    def _turned(self, mixed: torch.Tensor, positions: Positions) -> torch.Tensor:
        """Normalise, turn and scale queries and keys `[sequences, tokens, heads + key-value heads, width]`."""
        if self.norms is not None and not self.settings.norm_after:
            mixed = self._normed(mixed)
        if self.settings.clip is not None:
            mixed = mixed.clamp(-self.settings.clip, self.settings.clip)
        turned = mixed * positions.cosine + mixed.roll(self.width // 2, dims=-1) * positions.sine
        if self.norms is not None and self.settings.norm_after:
            turned = self._normed(turned)
        if self.scale != 1.0:
            turned[:, :, : self.heads] *= self.scale
        return turned

    def _normed(self, mixed: torch.Tensor) -> torch.Tensor:
        assert self.norms is not None
        if self.settings.norm == "head":
            return functional.rms_norm(mixed, (self.width,), None, self.epsilon) * self.norms
        parts = torch.split(mixed, [self.heads, self.key_value_heads], dim=2)
        normed = [functional.rms_norm(part, part.shape[2:], None, self.epsilon) for part in parts]
        return torch.cat(normed, dim=2) * self.norms

    def _attend(self, turned: torch.Tensor, values: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        query, keys = turned[:, :, : self.heads].transpose(1, 2), turned[:, :, self.heads :]
        cache.append(self.index, positions.places, keys, values)
        if positions.fresh:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        else:
            keys, values = cache.read(self.index, positions.places)
        return attend(query, keys, values, positions, self.window, self.sinks)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: Positions,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what each token finds, `[sequences, tokens, heads · width of a value]`.

    Args:
        query: `[sequences, heads, tokens, width]`; logits are divided by the square root of the width.
        keys, values: `[sequences, key-value heads, keys, width]`.
        sinks: a logit of each head that takes a share of the softmax and has no value.
    """
    count, heads, tokens, width = query.shape
    shared = keys.shape[1]
    mask, causal = positions.mask(window), positions.causal(window)
    if sinks is not None:
        repeated = [part.unsqueeze(2).expand(-1, -1, heads // shared, -1, -1).flatten(1, 2) for part in (keys, values)]
        found = _with_sinks(query, repeated[0], repeated[1], mask, causal, sinks)
    elif tokens == 1:
        # The heads that share a key take the place of tokens: nothing is repeated.
        query = query.reshape(count, shared, heads // shared, width)
        found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask)
        return found.reshape(count, 1, -1)
    else:
        found = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=causal, enable_gqa=True
        )
    return found.transpose(1, 2).reshape(count, tokens, -1)


def _with_sinks(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    sinks: torch.Tensor,
) -> torch.Tensor:
    """A sink takes the share exp(sink) / (exp(sink) + sum of exp(logits)): what is found is less by as much."""
    added = None
    if mask is not None:
        added = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    found, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, keys, values, 0.0, causal, attn_mask=added
    )
    share: torch.Tensor = torch.sigmoid(logsumexp - sinks.view(1, -1, 1)).unsqueeze(-1)
    weighted: torch.Tensor = share.to(found.dtype) * found
    return weighted


class LatentAttention:
    """Multi-head latent attention (arXiv 2405.04434) in its absorbed form, over a cache of latent vectors.

    A token's key is its latent vector and what is turned of it, the same for all heads; its value is the latent vector.
    What would make keys of it is multiplied into the queries, what would make values of it into what they find.
    """

    def __init__(
        self,
        index: int,
        architecture: Architecture,
        query: tuple[Linear, Norm, Linear] | Linear,
        compress: Linear,
        norm: Norm,
        expand: torch.Tensor,
        output: Linear,
    ) -> None:
        """Take projections.

        Args:
            query: to all heads' queries, or to their compression, its norm, and from it to queries.
            compress: to the latent vector and the part of the key that is turned.
            expand: from the latent vector to all heads' keys and values, `[heads, plain + value, rank]`.
        """
        latent = architecture.attention.latent
        assert latent is not None
        self.index, self.heads, self.latent = index, architecture.num_attention_heads, latent
        self.query, self.compress, self.norm, self.output, self.expand = query, compress, norm, output, expand
        self.to_keys, self.to_values = torch.split(expand, [latent.plain, latent.value], dim=1)
        width, scale = latent.rank + latent.turned, architecture.attention.scale
        own = (latent.plain + latent.turned) ** -0.5 if scale is None else scale
        self.scale = own * width**0.5

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        parts = self.query if isinstance(self.query, tuple) else (self.query,)
        rest = self.compress.nbytes + self.norm.nbytes + self.expand.nbytes + self.output.nbytes
        return rest + sum(part.nbytes for part in parts)

    def __call__(self, hidden: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        """Map `[sequences, tokens, hidden]` to the same shape, appending latent vectors to the cache."""
        count, tokens, _ = hidden.shape
        at = self.latent
        if isinstance(self.query, tuple):
            down, norm, up = self.query
            query = up(norm(down(hidden)))
        else:
            query = self.query(hidden)
        query = query.view(count, tokens, self.heads, at.plain + at.turned)
        plain, turned = torch.split(query, [at.plain, at.turned], dim=-1)
        latent, key = torch.split(self.compress(hidden), [at.rank, at.turned], dim=-1)
        latent = self.norm(latent).unsqueeze(2)
        key = torch.cat((latent, _turn(key.unsqueeze(2), positions)), dim=-1)
        absorbed = torch.einsum("bthp,hpr->bthr", plain, self.to_keys)
        query = torch.cat((absorbed, _turn(turned, positions)), dim=-1) * self.scale
        cache.append(self.index, positions.places, key, None)
        if positions.fresh:
            keys = key.transpose(1, 2)
        else:
            keys, _ = cache.read(self.index, positions.places)
        found = attend(query.transpose(1, 2), keys, keys[..., : at.rank], positions)
        found = found.view(count, tokens, self.heads, at.rank)
        return self.output(torch.einsum("bthr,hvr->bthv", found, self.to_values).flatten(2))


def _turn(part: torch.Tensor, positions: Positions) -> torch.Tensor:
    return part * positions.cosine + part.roll(part.shape[-1] // 2, dims=-1) * positions.sine

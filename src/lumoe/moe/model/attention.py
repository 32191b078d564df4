"""Grouped-query attention with rotary positions over a cache of keys and values, for sequences of unlike lengths."""

from __future__ import annotations

from functools import cached_property

import torch
from torch.nn import functional

from lumoe.moe.checkpoint.weights import Architecture
from lumoe.moe.model.kv_cache import KVCache, Places
from lumoe.moe.model.linear import Linear


class Rotary:
    """Cosines and sines of the rotary embedding (arXiv 2104.09864), made as positions are asked for."""

    def __init__(self, width: int, base: float, dtype: torch.dtype) -> None:
        self._frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)
        self._dtype = dtype
        self._grow(256)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and signed sine `[sequences, tokens, 1, width]` for positions `[sequences, tokens]`."""
        last = int(positions.max())
        if last >= self._cosine.shape[0]:
            self._grow(2 * last)
        return self._cosine[positions].unsqueeze(2), self._sine[positions].unsqueeze(2)

    def _grow(self, length: int) -> None:
        angles = torch.outer(torch.arange(length).float(), self._frequencies)
        self._cosine = torch.cat((angles.cos(), angles.cos()), dim=-1).to(self._dtype)
        # Rotating by half a head negates the first half; the sign lies in the table.
        self._sine = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(self._dtype)


class Positions:
    """What one forward pass needs to know about positions: computed once, used by every layer.

    Attributes:
        places: where the new tokens' keys and values go, and where those before them are.
        fresh: whether the new tokens are the first ones of every sequence: nothing is before them.
        mask: which keys each token sees, bool `[sequences, 1, tokens, keys]`; None where all see all keys, or all up to
            themselves.
    """

    def __init__(self, cache: KVCache, slots: list[int], tokens: int, rotary: Rotary, sliding: int | None) -> None:
        starts = [cache.lengths[slot] for slot in slots]
        for slot, start in zip(slots, starts, strict=True):
            cache.reserve(slot, start + tokens)
        self.places: Places = cache.places(slots, tokens)
        self.window = sliding
        positions = torch.tensor(starts).unsqueeze(1) + torch.arange(tokens)
        self.cosine, self.sine = rotary.at(positions)
        self._positions, self._starts, self._tokens = positions, starts, tokens
        self.fresh = not any(starts)
        clipped = sliding is not None and self.places.longest > sliding
        self.causal = self.fresh and tokens > 1 and not clipped

    @cached_property
    def mask(self) -> torch.Tensor | None:
        clipped = self.window is not None and self.places.longest > self.window
        if self.causal or (self._tokens == 1 and len({*self._starts}) == 1 and not clipped):
            return None
        key, own = torch.arange(self.places.longest), self._positions.unsqueeze(-1)
        mask = key <= own
        if self.window is not None:
            mask &= key > own - self.window
        return mask.unsqueeze(1)


class Attention:
    """One layer's attention; query, key and value projections are one matrix."""

    __slots__ = ("heads", "index", "key_value_heads", "output", "projection", "width")

    def __init__(self, index: int, architecture: Architecture, projection: Linear, output: Linear) -> None:
        self.index, self.projection, self.output = index, projection, output
        self.heads, self.key_value_heads = architecture.num_attention_heads, architecture.num_key_value_heads
        self.width = architecture.head_width

    def __call__(self, hidden: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        """Map `[sequences, tokens, hidden]` to the same shape, appending keys and values to the cache."""
        count, tokens, _ = hidden.shape
        heads, shared = self.heads, self.key_value_heads
        mixed = self.projection(hidden).view(count, tokens, heads + 2 * shared, self.width)
        turned, values = mixed[:, :, : heads + shared], mixed[:, :, heads + shared :]
        turned = turned * positions.cosine + turned.roll(self.width // 2, dims=-1) * positions.sine
        if tokens == 1:
            found = cache.decode(self.index, positions.places, turned, values, positions.window)
            if found is not None:
                return self.output(found)
        return self.output(self._attend(turned, values, cache, positions))

    def _attend(self, turned: torch.Tensor, values: torch.Tensor, cache: KVCache, positions: Positions) -> torch.Tensor:
        count, tokens, _, width = values.shape
        heads, shared = self.heads, self.key_value_heads
        query, keys = turned[:, :, :heads].transpose(1, 2), turned[:, :, heads:]
        cache.append(self.index, positions.places, keys, values)
        if positions.fresh:
            keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        else:
            keys, values = cache.read(self.index, positions.places)
        if tokens == 1:
            # The heads that share a key take the place of tokens: nothing is repeated.
            query = query.reshape(count, shared, heads // shared, width)
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=positions.mask)
            return found.reshape(count, 1, heads * width)
        found = functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=positions.mask, is_causal=positions.causal, enable_gqa=True
        )
        return found.transpose(1, 2).reshape(count, tokens, heads * width)

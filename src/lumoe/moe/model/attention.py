"""Grouped-query attention with rotary positions over a cache of keys and values, for sequences of unlike lengths."""

from __future__ import annotations

import torch
from torch.nn import functional

from lumoe.moe.checkpoint.weights import Architecture
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


class KVCache:
    """Keys and values of up to `sequences` sequences, each as long as it has come.

    Attributes:
        keys, values: per layer `[sequences, key-value heads, capacity, width]`.
        lengths: tokens stored of each sequence.
    """

    def __init__(self, architecture: Architecture, sequences: int, capacity: int, dtype: torch.dtype) -> None:
        a = architecture
        shape = (a.num_hidden_layers, sequences, a.num_key_value_heads, capacity, a.head_width)
        self.keys = torch.zeros(shape, dtype=dtype).unbind(0)
        self.values = torch.zeros(shape, dtype=dtype).unbind(0)
        self.lengths = [0] * sequences
        self.capacity = capacity

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(value.nbytes for value in (*self.keys, *self.values))


class Positions:
    """What one forward pass needs to know about positions: computed once, used by every layer.

    Attributes:
        slots: the cache's sequences that take part.
        starts: tokens of each that are already in the cache.
        tokens: new tokens of each.
    """

    def __init__(self, cache: KVCache, slots: list[int], tokens: int, rotary: Rotary, sliding: int | None) -> None:
        self.slots, self.tokens = slots, tokens
        self.starts = [cache.lengths[slot] for slot in slots]
        self.longest = max(self.starts) + tokens
        positions = torch.tensor(self.starts).unsqueeze(1) + torch.arange(tokens)
        self.cosine, self.sine = rotary.at(positions)
        # Neighbouring slots of one length are a slice of the cache: no copy.
        self.even = len({*self.starts}) == 1 and slots == list(range(slots[0], slots[0] + len(slots)))
        self.mask: torch.Tensor | None = None
        clipped = sliding is not None and self.longest > sliding
        self.causal = self.even and self.starts[0] == 0 and tokens > 1 and not clipped
        if not self.causal and (tokens > 1 or not self.even or clipped):
            key = torch.arange(self.longest)
            self.mask = key <= positions.unsqueeze(-1)
            if sliding is not None:
                self.mask &= key > positions.unsqueeze(-1) - sliding
            self.mask = self.mask.unsqueeze(1)  # [sequences, 1, tokens, keys]


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
        turned = mixed[:, :, : heads + shared]
        turned = turned * positions.cosine + turned.roll(self.width // 2, dims=-1) * positions.sine
        keys, values = self._remember(
            cache, positions, turned[:, :, heads:].transpose(1, 2), mixed[:, :, heads + shared :].transpose(1, 2)
        )
        query = turned[:, :, :heads].transpose(1, 2)
        if tokens == 1:
            # The heads that share a key take the place of tokens: nothing is repeated.
            query = query.reshape(count, shared, heads // shared, self.width)
            found = functional.scaled_dot_product_attention(query, keys, values, attn_mask=positions.mask)
            found = found.reshape(count, 1, heads * self.width)
        else:
            found = functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=positions.mask, is_causal=positions.causal, enable_gqa=True
            )
            found = found.transpose(1, 2).reshape(count, tokens, heads * self.width)
        return self.output(found)

    def _remember(
        self, cache: KVCache, positions: Positions, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        all_keys, all_values = cache.keys[self.index], cache.values[self.index]
        if positions.even:
            first, start, end = positions.slots[0], positions.starts[0], positions.longest
            rows = slice(first, first + len(positions.slots))
            all_keys[rows, :, start:end] = keys
            all_values[rows, :, start:end] = values
            return all_keys[rows, :, :end], all_values[rows, :, :end]
        for row, (slot, start) in enumerate(zip(positions.slots, positions.starts, strict=True)):
            all_keys[slot, :, start : start + positions.tokens] = keys[row]
            all_values[slot, :, start : start + positions.tokens] = values[row]
        return all_keys[positions.slots, :, : positions.longest], all_values[positions.slots, :, : positions.longest]

"""Keys and values in blocks of 16 tokens, so that sequences share what they have in common and give back what they had.

A block holds its tokens for all layers. Sequences find theirs through tables, as in arXiv 2309.06180; memory is taken
from the system when a block is first written to, and given back when nobody has the block any more.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import torch

from lumoe.anonymous_memory import anonymous
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.kernels.library import attention_library
from lumoe.moe.kernels.steps import Step
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.planning.shape import KV_BLOCK


class CacheFullError(Exception):
    """No block is left within the limit."""


class States:
    """What layers keep of each sequence in place of keys and values: its last inputs, and a matrix a head.

    Zeros at a sequence's beginning; memory is taken from the system when they are first written to.
    """

    def __init__(self, architecture: Architecture, sequences: int) -> None:
        d = architecture.delta
        assert d is not None
        layers, recent = len(architecture.delta_layers), d.channels * (d.convolution - 1)
        self._stride = -(-architecture.state_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = anonymous(sequences * self._stride)
        values = torch.from_numpy(np.frombuffer(self._memory, dtype=np.float32))
        slot, tokens = self._stride // 4, d.convolution - 1
        self._recent = values.as_strided((sequences, layers, d.channels, tokens), (slot, recent, tokens, 1))
        self._matrices = values.as_strided(
            (sequences, layers, d.value_heads, d.key, d.value),
            (slot, d.value_heads * d.key * d.value, d.key * d.value, d.value, 1),
            layers * recent,
        )

    def of(self, layer: int, slots: Sequence[int], begun: Sequence[bool]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's last inputs `[sequences, channels, tokens]` and matrices `[sequences, heads, key, value]`.

        Args:
            begun: whether each sequence has one; zeros where it has not, whatever was there.
        """
        recent, matrices = self._recent[list(slots), layer], self._matrices[list(slots), layer]
        if not all(begun):
            fresh = ~torch.tensor(begun)
            recent[fresh], matrices[fresh] = 0.0, 0.0
        return recent, matrices

    def put(self, layer: int, slots: Sequence[int], recent: torch.Tensor, matrices: torch.Tensor) -> None:
        """Store what `of` is to return next."""
        self._recent[list(slots), layer], self._matrices[list(slots), layer] = recent, matrices

    def clear(self, slot: int) -> None:
        """Give a sequence's memory back to the system."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED, slot * self._stride, self._stride)


class KVCache:
    """Keys and values of up to `sequences` sequences of up to `capacity` tokens.

    Attributes:
        lengths: tokens stored of each sequence; may be set back, which keeps its blocks.
        tables: the blocks of each sequence, in order.
        limit: blocks that may be held at once.
        bits: 16 stores keys and values as they are; 8 rounds each head's vector to 8-bit integers and a scale.
        states: of layers that have no keys and values; None where all have.
        state_blocks: blocks that a sequence takes for its states: these are counted, their memory lies elsewhere.
    """

    def __init__(
        self, architecture: Architecture, sequences: int, capacity: int, dtype: torch.dtype, bits: int = FULL_BITS
    ) -> None:
        a = architecture
        self.capacity, self.bits, self.dtype = capacity, bits, dtype
        self.lengths = [0] * sequences
        self.tables: list[list[int]] = [[] for _ in range(sequences)]
        columns = -(-capacity // KV_BLOCK)
        self.block_bytes = a.kv_block_bytes(dtype.itemsize, bits)
        self.states = States(a, sequences) if a.delta is not None else None
        self.state_blocks = -(-a.state_bytes // self.block_bytes)
        self._for_states: list[list[int]] = [[] for _ in range(sequences)]
        self.blocks = self.limit = sequences * (columns + self.state_blocks)
        self._owners = [0] * self.blocks
        self._free = list(range(self.blocks))[::-1]
        self._index = np.zeros((sequences, columns), dtype=np.int32)
        # Address space only: the system gives memory page by page, as blocks are written to.
        self._memory = anonymous(max(self.blocks * self.block_bytes, mmap.PAGESIZE))
        self._bytes = torch.from_numpy(np.frombuffer(self._memory, dtype=np.uint8))
        self._lay_out(a)
        parts, _, width = a.kv_layout
        fits = dtype in (torch.float32, torch.bfloat16) and parts == 2 and width % 16 == 0
        library = attention_library() if fits else None
        self._attend = library.lumoe_attend if library else None

    @property
    def held(self) -> int:
        """Blocks that somebody has."""
        return self.blocks - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes of the blocks that somebody has."""
        return self.held * self.block_bytes

    def reserve(self, slot: int, tokens: int) -> None:
        """Let sequence `slot` have blocks for `tokens` tokens.

        Raises:
            CacheFullError: there are too few; it has what it had.
        """
        table = self.tables[slot]
        missing = self.missing(slot, tokens)
        if missing <= 0:
            return
        if missing > self.limit - self.held:
            raise CacheFullError(f"{missing} blocks of keys and values are wanted, {self.limit - self.held} are left")
        while len(self._for_states[slot]) < self.state_blocks:
            block = self._free.pop()
            self._owners[block] = 1
            self._for_states[slot].append(block)
            missing -= 1
        for _ in range(missing):
            block = self._free.pop()
            self._owners[block] = 1
            self._index[slot, len(table)] = block
            table.append(block)

    def missing(self, slot: int, tokens: int) -> int:
        """Return how many more blocks sequence `slot` needs for `tokens` tokens; at most 0: none."""
        lacking = self.state_blocks - len(self._for_states[slot])
        return -(-tokens // KV_BLOCK) - len(self.tables[slot]) + lacking

    def adopt(self, slot: int, blocks: Sequence[int]) -> None:
        """Let the empty sequence `slot` begin with `blocks` that others have; they are full and stay as they are."""
        for block in blocks:
            self.share(block)
        self.tables[slot] = list(blocks)
        self._index[slot, : len(blocks)] = blocks
        self.lengths[slot] = len(blocks) * KV_BLOCK

    def clear(self, slot: int) -> None:
        """Forget sequence `slot`."""
        for block in (*self.tables[slot], *self._for_states[slot]):
            self.give_up(block)
        if self.states is not None and self._for_states[slot]:
            self.states.clear(slot)
        self._for_states[slot] = []
        self.tables[slot], self.lengths[slot] = [], 0

    def share(self, block: int) -> None:
        """Have a block together with those that have it already."""
        self._owners[block] += 1

    def owners(self, block: int) -> int:
        """How many have a block."""
        return self._owners[block]

    def give_up(self, block: int) -> None:
        """Have a block no longer; the last owner's leave gives its memory back to the system."""
        self._owners[block] -= 1
        if self._owners[block] == 0:
            self._free.append(block)
            if hasattr(mmap, "MADV_DONTNEED"):
                self._memory.madvise(mmap.MADV_DONTNEED, block * self.block_bytes, self.block_bytes)

    def append(self, layer: int, places: Places, keys: torch.Tensor, values: torch.Tensor | None) -> None:
        """Store new keys and values `[sequences, tokens, key-value heads, width]` of one layer.

        Args:
            values: None where a layer's values are parts of its keys, see `ModelShape.kv_layout`.
        """
        for which, new in enumerate((keys, values)):
            if new is None:
                continue
            if self.bits == FULL_BITS:
                self._values[:, layer, which][places.blocks, :, places.offsets] = new
            else:
                scales = new.float().abs().amax(-1) / 127
                codes = (new.float() / scales.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)).round()
                self._values[:, layer, which][places.blocks, :, places.offsets] = codes.to(torch.int8)
                self._scales[:, layer, which][places.blocks, :, places.offsets] = scales

    def read(self, layer: int, places: Places) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one layer's keys and values `[sequences, key-value heads, longest, width]`; short ones are padded.

        Where values are parts of keys, both are the keys.
        """
        found = [self._read(layer, which, places.tables)[:, :, : places.longest] for which in range(self._parts)]
        return found[0], found[-1]

    def decode(
        self, layer: int, places: Places, turned: torch.Tensor, values: torch.Tensor, window: int | None
    ) -> torch.Tensor | None:
        """Append one token of each sequence and attend to all up to it, in one call; None where no kernel is there.

        Args:
            turned: queries and keys `[sequences, 1, heads + key-value heads, width]`.
            values: `[sequences, 1, key-value heads, width]`.
            window: tokens that are attended to, the new one included; None for all.

        Returns:
            `[sequences, 1, heads · width]`.
        """
        if self._attend is None:
            return None
        count, _, groups, width = values.shape
        heads = turned.shape[2] - groups
        found = torch.empty((count, 1, heads * width), dtype=turned.dtype)
        self._attend(
            turned.data_ptr(), turned.stride(0), values.data_ptr(), values.stride(0), found.data_ptr(),
            self._bytes.data_ptr(), self.block_bytes, layer * self._layer_bytes,
            self._index.ctypes.data, self._index.shape[1], places.slots.data_ptr(), places.lengths.data_ptr(),
            count, heads, groups, width, window or 0, int(self.dtype == torch.bfloat16), int(self.bits != FULL_BITS),
        )  # fmt: skip
        return found

    def step(self, places: Places, cosine: torch.Tensor, sine: torch.Tensor) -> Step | None:
        """Return what the kernels of a whole layer are told of this cache; None where they do not serve it.

        Args:
            cosine, sine: of the new tokens' positions, bfloat16, `width` values each.
        """
        if self._attend is None or self.dtype != torch.bfloat16:
            return None
        step = Step(
            self._bytes.data_ptr(), self._index.ctypes.data, places.slots.data_ptr(), places.lengths.data_ptr(),
            cosine.data_ptr(), sine.data_ptr(), self.block_bytes, self._layer_bytes, self._index.shape[1],
            self.bits != FULL_BITS, places.slots.numel(),
        )  # fmt: skip
        step.kept = places, cosine, sine
        return step

    def _lay_out(self, a: Architecture) -> None:
        (parts, groups, width), layers = a.kv_layout, a.kv_layers
        self._parts = parts
        vectors = parts * groups * KV_BLOCK
        stored = self.dtype if self.bits == FULL_BITS else torch.int8
        size = stored.itemsize
        self._layer_bytes = vectors * width * size + (0 if self.bits == FULL_BITS else vectors * 4)
        shape = (self.blocks, layers, parts, groups, KV_BLOCK, width)
        inner = (groups * KV_BLOCK * width, KV_BLOCK * width, width, 1)
        self._values = self._bytes.view(stored).as_strided(
            shape, (self.block_bytes // size, self._layer_bytes // size, *inner)
        )
        if self.bits != FULL_BITS:
            self._scales = self._bytes.view(torch.float32).as_strided(
                shape[:-1],
                (self.block_bytes // 4, self._layer_bytes // 4, groups * KV_BLOCK, KV_BLOCK, 1),
                vectors * width // 4,
            )

    def _read(self, layer: int, which: int, tables: torch.Tensor) -> torch.Tensor:
        count, columns = tables.shape
        found = self._values[:, layer, which][tables]
        if self.bits != FULL_BITS:
            found = (found * self._scales[:, layer, which][tables].unsqueeze(-1)).to(self.dtype)
        # [sequences, blocks, heads, tokens, width]
        return found.transpose(1, 2).reshape(count, found.shape[2], columns * KV_BLOCK, found.shape[4])

    def places(self, slots: Sequence[int], tokens: int) -> Places:
        """Return where `tokens` new tokens of sequences go; they must have the blocks."""
        return Places(self._index, slots, [self.lengths[slot] for slot in slots], tokens)


class Places:
    """Where the new tokens of a forward pass go, and where those before them are.

    Attributes:
        slots, lengths: int64 `[sequences]`; lengths with the new tokens.
        longest: of the lengths.
    """

    def __init__(self, index: np.ndarray, slots: Sequence[int], starts: Sequence[int], tokens: int) -> None:
        self._index, self._tokens = index, tokens
        self.slots = torch.tensor(slots)
        self.lengths = torch.tensor([start + tokens for start in starts])
        self.longest = max(starts) + tokens
        self._found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    @property
    def tables(self) -> torch.Tensor:
        """Blocks of each sequence, int64 `[sequences, blocks of the longest]`; what a short one lacks is block 0."""
        return self._at()[0]

    @property
    def blocks(self) -> torch.Tensor:
        """Blocks that the new tokens go to, int64 `[sequences, tokens]`."""
        return self._at()[1]

    @property
    def offsets(self) -> torch.Tensor:
        """Where in those blocks, int64 `[sequences, tokens]`."""
        return self._at()[2]

    def _at(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._found is None:
            columns = -(-self.longest // KV_BLOCK)
            tables = torch.from_numpy(self._index[self.slots.numpy(), :columns].astype(np.int64))
            positions = (self.lengths - self._tokens).unsqueeze(1) + torch.arange(self._tokens)
            self._found = tables, tables.gather(1, positions // KV_BLOCK), positions % KV_BLOCK
        return self._found

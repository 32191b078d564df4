"""Blocks of keys and values under a limit: those of sequences, and idle ones that a next sequence may begin with.

A sequence that begins as an earlier one did takes over its full blocks instead of computing them again. What a block
holds depends on all tokens up to its end and on the precisions that they were computed at: both make up its name.
Residency does not: it never changes a bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Protocol

import numpy as np

from lumoe.moe.model.base import Cache
from lumoe.moe.planning.shape import KV_BLOCK


class SharedCache(Cache, Protocol):
    """A cache whose blocks several may have."""

    def adopt(self, slot: int, blocks: Sequence[int]) -> None: ...

    def share(self, block: int) -> None: ...

    def give_up(self, block: int) -> None: ...

    def owners(self, block: int) -> int: ...


class KVPool:
    """Gives out the blocks of a cache. All calls are the engine thread's; counts may be read from any.

    Attributes:
        prompt_tokens: of sequences that began.
        reused_tokens: of those, the ones whose keys and values were there.
    """

    def __init__(self, cache: Cache, shared: SharedCache | None = None) -> None:
        """Take over an empty cache.

        Args:
            shared: the same cache, if sequences are to share beginnings.
        """
        self.cache, self._shared = cache, shared
        # Least recently used first; a block's followers go before it.
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self.prompt_tokens = self.reused_tokens = 0

    @property
    def idle_blocks(self) -> int:
        """Blocks that no sequence has."""
        shared = self._shared
        return 0 if shared is None else sum(shared.owners(block) == 1 for block in list(self._known.values()))

    @property
    def busy_blocks(self) -> int:
        """Blocks of sequences."""
        return self.cache.held - self.idle_blocks

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that are held."""
        return self.cache.nbytes

    def begin(self, slot: int, tokens: Sequence[int], precisions: bytes) -> int:
        """Let the empty sequence `slot` begin with what is known of `tokens`; return how many that are.

        At least one token is left to compute: its logits are wanted.
        """
        if self._shared is None:
            return 0
        found = []
        for name in _names(tokens[: len(tokens) - 1], precisions):
            if name not in self._known:
                break
            found.append(name)
        for name in reversed(found):
            self._known.move_to_end(name)
        self._shared.adopt(slot, [self._known[name] for name in found])
        return len(found) * KV_BLOCK

    def count(self, prompt_tokens: int, reused_tokens: int) -> None:
        """Note how much of a prompt was there."""
        self.prompt_tokens += prompt_tokens
        self.reused_tokens += reused_tokens

    def knows_more(self, tokens: Sequence[int], precisions: bytes, than: int) -> bool:
        """Whether more than the first `than` of `tokens` are known."""
        names = list(_names(tokens[: len(tokens) - 1], precisions)) if self._shared is not None else []
        return len(names) * KV_BLOCK > than and names[than // KV_BLOCK] in self._known

    def keep(self, slot: int, tokens: Sequence[int], precisions: bytes) -> None:
        """Remember the full blocks of sequence `slot`, which holds the keys and values of `tokens` and no others."""
        shared = self._shared
        if shared is None:
            return
        names = list(_names(tokens[: self.cache.lengths[slot]], precisions))
        for name, block in reversed(list(zip(names, self.cache.tables[slot], strict=False))):
            if name not in self._known:
                shared.share(block)
                self._known[name] = block
            self._known.move_to_end(name)

    def end(self, slot: int, tokens: Sequence[int], precisions: bytes | None) -> None:
        """Take leave of sequence `slot`; its full blocks are remembered, if they are of one kind of precisions."""
        if precisions is not None:
            self.keep(slot, tokens, precisions)
        self.cache.clear(slot)
        self._forget(self.cache.held - self.cache.limit)

    def missing(self, slot: int, tokens: int) -> int:
        """Return how many more blocks sequence `slot` needs for `tokens` tokens."""
        return max(self.cache.missing(slot, tokens), 0)

    def make_room(self, blocks: int) -> bool:
        """Whether `blocks` more fit the limit; idle ones make room for them."""
        self._forget(blocks - (self.cache.limit - self.cache.held))
        return blocks <= self.cache.limit - self.cache.held

    def set_limit(self, blocks: int) -> None:
        """Hold no more than `blocks` from here on; idle ones are given back, sequences keep theirs."""
        self.cache.limit = blocks
        self._forget(self.cache.held - blocks)

    def _forget(self, blocks: int) -> None:
        shared = self._shared
        if blocks <= 0 or shared is None:
            return
        for name, block in list(self._known.items()):
            if shared.owners(block) == 1:
                del self._known[name]
                shared.give_up(block)
                blocks -= 1
                if blocks == 0:
                    return


def _names(tokens: Sequence[int], precisions: bytes) -> Iterator[bytes]:
    """Yield the name of each full block; it stands for all tokens up to the block's end."""
    name = precisions
    whole = len(tokens) // KV_BLOCK * KV_BLOCK
    for block in np.asarray(tokens[:whole], dtype="<i8").reshape(-1, KV_BLOCK):
        name = blake2b(name + block.tobytes(), digest_size=16).digest()
        yield name

"""Experts that are read before they are asked for, by a guess of what the next layer will choose.

They lie in memory of their own beside the swap buffers. A guess may be wrong: then it has cost its read, or what was
done of it when the layer made its choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from threading import Event
from typing import Any

from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.ledger import Ledger
from lumoe.moe.offload.tier import Buffer, Tier
from lumoe.moe.planning.plan import Plan

# Called with layer, expert, buffer, plan, and what says that the expert is no longer wanted.
Read = Callable[[int, int, Buffer, Plan, Callable[[], bool]], Expert]


@dataclass(eq=False)
class Guess:
    """One expert on its way.

    Attributes:
        task: its read.
        dropped: set when the layer has chosen others; the read may end early.
    """

    buffer: Buffer
    task: Future[Expert]
    dropped: Event = field(default_factory=Event)


class Guesses:
    """The guesses of one store; the thread that computes calls all of this.

    Attributes:
        started: reads of guesses that were begun so far.
    """

    def __init__(self, tier: Tier[Any, Any], ledger: Ledger, read: Read) -> None:
        self._tier, self._ledger, self._read = tier, ledger, read
        self._begun: dict[tuple[int, int], Guess] = {}
        self._leaving: list[Guess] = []
        self._idle: list[Buffer] = []
        self._room = 0
        self._taken = 0
        self.started = 0

    def resize(self, nbytes: int) -> None:
        """Allow so many bytes of buffers; all guesses are dropped and all buffers freed before."""
        self.keep(-1, ())
        wait([guess.task for guess in self._leaving])
        self._sweep()
        while self._idle:
            self._ledger.free(self._idle.pop())
        self._room, self._taken = nbytes, 0

    def begin(self, layer: int, experts: Sequence[int], sizes: Sequence[int], plan: Plan) -> int:
        """Start to read experts of a layer, the likeliest first, as far as there is room; return how many."""
        self._sweep()
        for count, (expert, size) in enumerate(zip(experts, sizes, strict=True)):
            buffer = self._buffer(size)
            if buffer is None:
                return count
            dropped = Event()
            task = self._tier.submit(buffer, self._read, layer, expert, buffer, plan, dropped.is_set)
            self._begun[layer, expert] = Guess(buffer, task, dropped)
        return len(experts)

    def keep(self, layer: int, wanted: Sequence[int]) -> dict[int, Guess]:
        """Return those of `wanted` that were guessed and whose reads have begun; drop all other guesses."""
        kept: dict[int, Guess] = {}
        for (where, expert), guess in self._begun.items():
            if guess.task.cancel():
                self._idle.append(guess.buffer)
                continue
            self.started += 1
            if where == layer and expert in wanted:
                kept[expert] = guess
            else:
                guess.dropped.set()
                self._leaving.append(guess)
        self._begun = {}
        return kept

    def give_back(self, buffer: Buffer) -> None:
        """Take back the buffer of a guess that was used, or another of the same size in its place."""
        self._idle.append(buffer)

    def give_up(self, buffer: Buffer) -> None:
        """Let go of the buffer of a guess: it is a resident's from now on."""
        self._taken -= buffer.nbytes

    def _buffer(self, size: int) -> Buffer | None:
        """Return a buffer of `size`, if there is one or room for one."""
        fitting = [at for at, buffer in enumerate(self._idle) if buffer.nbytes == size]
        if fitting:
            return self._idle.pop(fitting[0])
        while self._taken + size > self._room and self._idle:
            self._taken -= self._idle[-1].nbytes
            self._ledger.free(self._idle.pop())
        if self._taken + size > self._room:
            return None
        self._taken += size
        return self._ledger.allocate(size)

    def _sweep(self) -> None:
        """Take back the buffers of dropped guesses whose reads have ended, in whatever way."""
        still = [guess for guess in self._leaving if not guess.task.done()]
        self._idle += [guess.buffer for guess in self._leaving if guess not in still]
        self._leaving = still

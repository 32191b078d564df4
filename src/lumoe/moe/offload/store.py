"""Which expert is where: the fast tier within a byte budget, the slow tier behind it, and the traffic between them.

A miss is read into a swap buffer while other experts compute. Every buffer, the swap buffers among them, counts
against the budget from before it is allocated until after it is freed. What memory that is, only the tier knows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lumoe.errors import UserError
from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.eviction import Candidates, without
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.offload.guesses import Guess, Guesses
from lumoe.moe.offload.ledger import Ledger
from lumoe.moe.offload.tier import Buffer, Source, Tier, always_wanted
from lumoe.moe.planning.caching import CachePolicy, Caching, Values
from lumoe.moe.planning.plan import IntArray, Plan
from lumoe.progress import track

SWAP_BUFFERS = 2


@dataclass
class Counters:
    """Traffic since the store was made: look-ups that found the expert resident or not, bytes read, time waited.

    `in_place` counts the misses among them that computed where they rest, `guessed` the experts whose reads were begun
    before they were asked for, and `guessed_right` the misses that found theirs begun.
    """

    hits: int = 0
    misses: int = 0
    in_place: int = 0
    bytes_moved: int = 0
    wait_s: float = 0.0
    guessed: int = 0
    guessed_right: int = 0


@dataclass(eq=False)
class _Arrival:
    """A missed expert on its way: into a place of its own, a swap buffer, or the buffer of a guess."""

    index: int
    task: Future[Expert]
    swap: Buffer | None = None
    guess: Guess | None = None


class ExpertStore:
    """Hands out experts; knows their precision and tier.

    Attributes:
        caching: how the residents change while they are used.
        values: what each expert is worth to the fast tier.
    """

    def __init__(
        self,
        source: Source[Any],
        plan: Plan,
        budget_bytes: int | None = None,
        policy: CachePolicy | Caching = "static",
        swap_buffers: int = SWAP_BUFFERS,
        tier: Tier[Any, Any] | None = None,
        frequencies: ArrayLike | None = None,
    ) -> None:
        """Load the plan's resident experts.

        Args:
            budget_bytes: what experts and swap buffers may take; by default just what the plan needs.
            policy: `static` keeps the plan's residents; with the others a missed expert may take the place of those
                that are worth least.
            tier: the fast tier and the way into it; by default RAM and files.
            frequencies: `[L, E]`, chance that a token is routed to an expert, if it is known: what `lfru` starts from.

        Raises:
            UserError: the plan does not fit the model or the budget, or nothing can be read ahead on this tier.
        """
        self.source, self.caching, self.swap_buffers = source, Caching.of(policy), max(swap_buffers, 1)
        self.tier: Tier[Any, Any] = tier or FileTier()
        if self.caching.prefetch and not self.tier.overlapped:
            raise UserError("prefetch: reads do not run beside computation here; leave it at 0")
        self.counters = Counters()
        layers, experts = plan.shape
        self.plan = Plan.uniform(layers, experts, resident=False)
        self.values = Values(self.caching, plan.shape, frequencies)
        self._ledger = Ledger(self.tier)
        self._rows: list[list[Expert | None]] = [[None] * experts for _ in range(layers)]
        self._held: dict[tuple[int, int], Buffer] = {}
        self._near = np.zeros(plan.shape, dtype=bool)  # who is in `_held`
        self._swap: deque[Buffer] = deque()
        self._guesses = Guesses(self.tier, self._ledger, self._read)
        # The layer whose choice may be guessed, and what guesses it; then what it said and there was no room for yet.
        self._expected: tuple[int, Callable[[], Sequence[int]]] | None = None
        self._likely: tuple[int, list[int]] = 0, []
        # Residents of the plan that are not there yet, in the order of loading, and those being read.
        self._todo: dict[tuple[int, int], None] = {}
        self._arriving: dict[tuple[int, int], Future[Expert]] = {}
        self._hits = [[0] * experts for _ in range(layers)]
        self._misses = [[0] * experts for _ in range(layers)]
        self._last_layer = layers  # a look-up in no later layer than the one before begins a step
        self._place_lock, self._moved_lock = Lock(), Lock()
        self.switch(plan, budget_bytes)
        self.load_all()

    @property
    def budget_bytes(self) -> int:
        """What experts and swap buffers may take."""
        return self._ledger.limit

    @property
    def bytes_fast(self) -> int:
        """What they take."""
        return self._ledger.used

    @property
    def buffers(self) -> int:
        """Buffers beside the residents, each as large as the largest expert that may be missed."""
        return buffers(self.swap_buffers, self.caching)

    def switch(self, plan: Plan, budget_bytes: int | None = None) -> None:
        """Make `plan` the one in force: give up what it does not keep; `load_next` then brings in what it adds.

        From here on every expert has the plan's precision. Must not run during a forward pass.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        if plan.shape != self.plan.shape:
            raise UserError(f"plan: made for {plan.shape} layers and experts, the model has {self.plan.shape}")
        self.source.require(np.unique(plan.bits).tolist())
        needed = bytes_needed(self.source, plan, self.buffers)
        if budget_bytes is not None and needed > budget_bytes:
            raise UserError(
                f"the plan takes {needed} bytes for experts and swap buffers, {needed - budget_bytes} more than the "
                f"budget leaves ({budget_bytes})"
            )
        with self._quiet():
            self._expected, self._likely = None, (0, [])
            self._guesses.resize(0)
            for layer, expert in list(self._held):
                same = plan.bits[layer, expert] == self.plan.bits[layer, expert]
                if not (same and plan.resident[layer, expert]):
                    self._ledger.free(self._let_go(layer, expert))
            while self._swap:
                self._ledger.free(self._swap.popleft())
            self.tier.reclaim()
            self.plan, self._ledger.limit = plan, needed if budget_bytes is None else budget_bytes
            self._count_places(plan)
            if self._largest:
                self._swap.extend(self._ledger.allocate(self._largest) for _ in range(self.swap_buffers))
                self._guesses.resize(self.caching.prefetch * self._largest)
            self._todo = {
                (layer, expert): None
                for layer, expert in np.argwhere(plan.resident).tolist()
                if (layer, expert) not in self._held
            }

    def _count_places(self, plan: Plan) -> None:
        """Note what the plan's residents may take together, and what each expert takes."""
        sizes = expert_sizes(self.source, plan)
        self._sizes, self._largest = sizes, int(sizes[~plan.resident].max(initial=0))
        costs = {
            bits: self.tier.miss_cost(bits, self.source.nbytes(bits)) / self.source.nbytes(bits)
            for bits in np.unique(plan.bits).tolist()
        }
        self._weights = np.vectorize(costs.__getitem__, otypes=[float])(plan.bits)
        # Bytes of each layer's experts that are there, on their way, or have a place kept for them.
        self._taken = (sizes * plan.resident).sum(axis=1)
        if self.caching.scope == "layer":
            self._shares = self._taken.copy()
        else:
            self._shares = np.array([self.budget_bytes - self.buffers * self._largest])

    def load_next(self) -> bool:
        """Bring one more of the plan's residents into the fast tier; return whether there was one left to bring.

        May run beside forward passes: an expert is handed out only once it is whole.
        """
        with self._place_lock:
            if not self._todo:
                return False
            task = self._start_load(*next(iter(self._todo)))
        task.result()
        return True

    def load_all(self) -> None:
        """Bring in all of the plan's residents, and show how far that is."""
        for _ in track(range(len(self._todo)), "experts read"):
            self.load_next()

    def resident(self) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
        """bool `[L, E]`: what is in the fast tier now."""
        return np.array([[expert is not None for expert in row] for row in self._rows])

    def uses(self) -> tuple[IntArray, IntArray]:
        """Look-ups of each expert that found it resident and that did not: int `[L, E]` each."""
        return np.array(self._hits), np.array(self._misses)

    @property
    def looks_ahead(self) -> bool:
        """Whether it helps to tell what a later layer may choose."""
        return self.caching.prefetch > 0

    def expect(self, layer: int, guess: Callable[[], Sequence[int]]) -> None:
        """Let `guess` say which experts `layer` will likely ask for, the likeliest first.

        It is asked once the next look-up's own misses are on their way, if anything can be read ahead.
        """
        self._expected = layer, guess

    def fetch(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Expert]]:
        """Yield `(index, expert)` for each of `wanted` (distinct): residents first, then misses as they arrive.

        An expert must not be kept after the next one is asked for.

        Args:
            tokens: how many each of `wanted` will be given; one by default. Of the misses, who has most is read first.
        """
        row = self._rows[layer]
        found = [(index, row[index]) for index in wanted]
        self._count(layer, found)
        missing = [index for index, expert in found if expert is None]
        early = self._guessed(layer, missing)
        if not missing:
            self._look_ahead()
            yield from found  # type: ignore[misc]
            return
        counters = self.counters
        shares = dict(zip(wanted, tokens or [1] * len(wanted), strict=True))
        missing = sorted((index for index in missing if index not in early), key=shares.__getitem__, reverse=True)
        bits = self.plan.bits[layer, missing].tolist()
        near = self.tier.in_place(layer, missing, bits, [shares[index] for index in missing]) if missing else {}
        counters.in_place += len(near)
        reading = deque(_Arrival(index, guess.task, guess=guess) for index, guess in early.items())
        waiting = deque(index for index in missing if index not in near)
        del early  # whoever is done with is held by nobody
        yield from self._fetch_around(layer, wanted, waiting, reading, near, found)

    def at_hand(self, layer: int, wanted: Sequence[int]) -> list[Expert] | None:
        """Return `wanted`, in that order, if all are resident; they count as looked up. Else None."""
        row = self._rows[layer]
        found = [row[index] for index in wanted]
        resident = [expert for expert in found if expert is not None]
        if len(resident) < len(found):
            return None
        self._count(layer, list(zip(wanted, found, strict=True)))
        if self.caching.prefetch:
            self._guessed(layer, ())
            self._look_ahead()
        return resident

    def _count(self, layer: int, found: Sequence[tuple[int, Expert | None]]) -> None:
        """Take note of what was looked up, and whether it was resident."""
        hits, misses = self._hits[layer], self._misses[layer]
        missed = 0
        for index, expert in found:
            if expert is None:
                misses[index] += 1
                missed += 1
            else:
                hits[index] += 1
        self.counters.hits += len(found) - missed
        self.counters.misses += missed
        if self.caching.policy != "static":
            if layer <= self._last_layer:
                self.values.step()
            self._last_layer = layer
            self.values.use(layer, [index for index, _ in found])

    def _guessed(self, layer: int, missing: Sequence[int]) -> dict[int, Guess]:
        """Return those of `missing` whose reads have begun; no other guess is read any further."""
        early = self._guesses.keep(layer, missing)
        self._likely = layer, []
        self.counters.guessed = self._guesses.started
        return early

    def _look_ahead(self) -> None:
        """Begin to read what the next layer will likely ask for; all that is certainly needed is on its way."""
        if self._expected is not None:
            (layer, guess), self._expected = self._expected, None
            self._likely = layer, self._missing_of(layer, guess)
        layer, likely = self._likely
        if likely:
            begun = self._guesses.begin(layer, likely, self._sizes[layer, likely].tolist(), self.plan)
            self._likely = layer, likely[begun:]

    def _missing_of(self, layer: int, guess: Callable[[], Sequence[int]]) -> list[int]:
        """Return the likeliest experts of a layer that are neither there nor on their way, up to `prefetch` of them."""
        row = self._rows[layer]
        if None not in row or not self._largest:
            return []
        with self._place_lock:
            on_the_way = {index for where, index in (*self._todo, *self._arriving) if where == layer}
        missing = [index for index in guess() if row[index] is None and index not in on_the_way]
        return missing[: self.caching.prefetch]

    def _fetch_around(
        self,
        layer: int,
        wanted: Sequence[int],
        waiting: deque[int],
        reading: deque[_Arrival],
        near: Mapping[int, Expert],
        found: list[tuple[int, Expert | None]],
    ) -> Iterator[tuple[int, Expert]]:
        def start() -> None:
            while waiting:
                index, buffer = waiting[0], None
                task = self._load_to_stay(layer, index, wanted)
                if task is None:
                    if not self._swap:
                        return
                    buffer = self._swap.popleft()
                    task = self.tier.submit(buffer, self._read, layer, index, buffer, self.plan)
                reading.append(_Arrival(waiting.popleft(), task, buffer))
            self._look_ahead()

        expert: Expert | None
        try:
            if self.tier.overlapped:
                start()
            for index, expert in found:
                if expert is not None:
                    yield index, expert
            yield from near.items()
            start()
            while reading:
                # Whatever is there is computed first.
                arrival = next((one for one in reading if one.task.done()), reading[0])
                began = time.perf_counter()
                expert = self._arrived(arrival, waiting)
                self.counters.wait_s += time.perf_counter() - began
                reading.remove(arrival)
                if expert is not None:
                    yield arrival.index, expert
                    expert = None
                self._give_back(arrival, layer, wanted)
                del arrival  # it would hold memory that is given up for the next one
                start()
        finally:
            # After a fault the buffers come back once the reader is done with them.
            while reading:
                arrival = reading.popleft()
                arrival.task.exception()
                self._give_back(arrival, layer, None)

    def _arrived(self, arrival: _Arrival, waiting: deque[int]) -> Expert | None:
        """Wait for a missed expert; None where its guess could not be read: then it waits for a read of its own."""
        if arrival.guess is None:
            return arrival.task.result()
        if arrival.task.exception() is not None:
            waiting.appendleft(arrival.index)
            return None
        self.counters.guessed_right += 1
        return arrival.task.result()

    def _give_back(self, arrival: _Arrival, layer: int, wanted: Sequence[int] | None) -> None:
        """Take back the buffer of an expert that was used; a guessed one may stay in it, if it was `wanted`."""
        if arrival.swap is not None:
            self._swap.append(arrival.swap)
        if arrival.guess is not None:
            buffer = arrival.guess.buffer
            if wanted is None or arrival.task.exception() is not None:
                self._guesses.give_back(buffer)
            else:
                self._settle(layer, arrival.index, arrival.task.result(), buffer, wanted)

    def _settle(self, layer: int, index: int, expert: Expert, buffer: Buffer, wanted: Sequence[int]) -> None:
        """Let a guessed expert stay where it was read, if it is worth a place; else its buffer is free again."""
        with self._place_lock:
            known = (layer, index) in self._held or (layer, index) in self._arriving or (layer, index) in self._todo
            victims = None if known else self._victims(layer, index, wanted)
            if victims is None:
                self._guesses.give_back(buffer)
                return
            given = self._take_out(victims, buffer.nbytes)
            self._keep(layer, index, expert, buffer)
            self._taken[layer] += buffer.nbytes
            # Two buffers of one size change places.
            if given is None:
                self._guesses.give_up(buffer)
            else:
                self._guesses.give_back(given)

    @contextmanager
    def stand_in(self, expert: Expert) -> Iterator[None]:
        """Let every look-up find `expert`, for timing what surrounds the experts; no other pass may run meanwhile."""
        rows, self._rows = self._rows, [[expert] * len(row) for row in self._rows]
        try:
            yield
        finally:
            self._rows = rows

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Hold the place lock at a moment when no expert is on its way to a place of its own."""
        while True:
            with self._place_lock:
                if not self._arriving:
                    yield
                    return
                tasks = list(self._arriving.values())
            wait(tasks)

    def _load_to_stay(self, layer: int, index: int, wanted: Sequence[int]) -> Future[Expert] | None:
        """Start, or find, the read of a missed expert that is to stay: one that the plan or the policy wants."""
        with self._place_lock:
            if (expert := self._rows[layer][index]) is not None:  # it has come since it was missed
                there: Future[Expert] = Future()
                there.set_result(expert)
                return there
            if (layer, index) in self._arriving:
                return self._arriving[layer, index]
            if (layer, index) in self._todo:
                return self._start_load(layer, index)
            victims = self._victims(layer, index, wanted)
            if victims is not None:
                size = int(self._sizes[layer, index])
                buffer = self._take_out(victims, size) or self._ledger.allocate(size)
                self._taken[layer] += size
                return self._start_load(layer, index, buffer)
        return None

    def _start_load(self, layer: int, expert: int, buffer: Buffer | None = None) -> Future[Expert]:
        """Start to read an expert into a place of its own; the place lock is held."""
        plan = self.plan
        if buffer is None:
            buffer = self._ledger.allocate(int(self._sizes[layer, expert]))
        self._todo.pop((layer, expert), None)
        task = self.tier.submit(buffer, self._arrive, layer, expert, buffer, plan)
        self._arriving[layer, expert] = task
        return task

    def _arrive(self, layer: int, expert: int, buffer: Buffer, plan: Plan) -> Expert:
        try:
            loaded = self._read(layer, expert, buffer, plan)
        except BaseException:
            with self._place_lock:
                del self._arriving[layer, expert]
                if plan.resident[layer, expert]:
                    self._todo[layer, expert] = None  # whoever asks next meets the same fault, or better luck
                else:
                    self._taken[layer] -= buffer.nbytes
            self._ledger.free(buffer)
            raise
        with self._place_lock:
            del self._arriving[layer, expert]
            self._keep(layer, expert, loaded, buffer)
        return loaded

    def _keep(self, layer: int, index: int, expert: Expert, buffer: Buffer) -> None:
        """Let an expert be found from now on."""
        self._rows[layer][index], self._held[layer, index], self._near[layer, index] = expert, buffer, True

    def _let_go(self, layer: int, index: int) -> Buffer:
        """Let an expert be found no more; return its buffer."""
        self._rows[layer][index], self._near[layer, index] = None, False
        return self._held.pop((layer, index))

    def _victims(self, layer: int, index: int, wanted: Sequence[int]) -> list[tuple[int, int]] | None:
        """Return which residents go for a missed expert; None if it is not to stay. The place lock is held.

        Never one that the look-up itself wants, nor one that would be too large for a swap buffer when it is missed.
        """
        caching = self.caching
        if caching.policy == "static":
            return None
        free = self._near & (self._sizes <= self._largest)
        if caching.scope == "layer":
            free[np.arange(len(free)) != layer] = False
            room = self._shares[layer] - self._taken[layer]
        else:
            room = self._shares[0] - self._taken.sum()
        if caching.policy == "lru":
            worth, most = self.values.now, np.inf
        else:
            worth = self.values.now * self._weights
            most = float(worth[layer, index])
        needed = int(self._sizes[layer, index] - room)
        return Candidates(worth, self._sizes, without(free, layer, wanted)).victims(needed, most)

    def _take_out(self, victims: Sequence[tuple[int, int]], size: int) -> Buffer | None:
        """Let residents go; return the buffer of one that is of `size`, if there is one. The place lock is held."""
        given: Buffer | None = None
        for layer, expert in victims:
            nbytes = self._held[layer, expert].nbytes
            self._taken[layer] -= nbytes
            if given is None and nbytes == size:
                given = self._let_go(layer, expert)
            else:
                self._ledger.free(self._let_go(layer, expert))
        return given

    def _read(
        self, layer: int, expert: int, buffer: Buffer, plan: Plan, dropped: Callable[[], bool] = always_wanted
    ) -> Expert:
        bits = int(plan.bits[layer, expert])
        record = self.source.record(layer, expert, bits)
        self.tier.load(buffer, record, dropped)
        with self._moved_lock:
            self.counters.bytes_moved += record.nbytes
        return self.source.build(layer, expert, bits, buffer.tensors(record))


def buffers(swap_buffers: int, caching: Caching) -> int:
    """Return how many buffers a store has beside the residents: those that misses pass through, and of guesses."""
    return max(swap_buffers, 1) + caching.prefetch


def expert_sizes(source: Source[Any], plan: Plan) -> IntArray:
    """Return what each expert takes in the fast tier at the plan's precision, int `[L, E]`."""
    return plan.expert_bytes({bits: source.nbytes(bits) for bits in np.unique(plan.bits).tolist()})


def bytes_needed(source: Source[Any], plan: Plan, swap_buffers: int) -> int:
    """Return the bytes that `plan`'s residents and the swap buffers for its other experts take."""
    sizes = expert_sizes(source, plan)
    return int(sizes[plan.resident].sum()) + max(swap_buffers, 1) * int(sizes[~plan.resident].max(initial=0))

"""Which expert is where: the fast tier within a byte budget, the slow tier behind it, and the traffic between them.

A miss is read into a swap buffer while other experts compute. Every buffer, the swap buffers among them, counts
against the budget from before it is allocated until after it is freed. What memory that is, only the tier knows.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal

import numpy as np

from lumoe.errors import UserError
from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.offload.tier import Buffer, Source, Tier
from lumoe.moe.planning.plan import IntArray, Plan
from lumoe.progress import track

CachePolicy = Literal["static", "lru"]
SWAP_BUFFERS = 2


@dataclass
class Counters:
    """Traffic since the store was made: look-ups that found the expert resident or not, bytes read, time waited.

    `in_place` counts the misses among them that computed where they rest.
    """

    hits: int = 0
    misses: int = 0
    in_place: int = 0
    bytes_moved: int = 0
    wait_s: float = 0.0


class ExpertStore:
    """Hands out experts; knows their precision and tier."""

    def __init__(
        self,
        source: Source[Any],
        plan: Plan,
        budget_bytes: int | None = None,
        policy: CachePolicy = "static",
        swap_buffers: int = SWAP_BUFFERS,
        tier: Tier[Any, Any] | None = None,
    ) -> None:
        """Load the plan's resident experts.

        Args:
            budget_bytes: what experts and swap buffers may take; by default just what the plan needs.
            policy: `static` keeps the plan's residents; `lru` lets a missed expert take the place of the least recently
                used one of its layer and precision.
            tier: the fast tier and the way into it; by default RAM and files.

        Raises:
            UserError: the plan does not fit the model or the budget.
        """
        self.source, self.policy, self.swap_buffers = source, policy, max(swap_buffers, 1)
        self.tier: Tier[Any, Any] = tier or FileTier()
        self.counters = Counters()
        layers, experts = plan.shape
        self.plan = Plan.uniform(layers, experts, resident=False)
        self.budget_bytes = 0
        self.bytes_fast = 0
        self._rows: list[list[Expert | None]] = [[None] * experts for _ in range(layers)]
        self._held: dict[tuple[int, int], Buffer] = {}
        self._swap: deque[Buffer] = deque()
        # Residents of the plan that are not there yet, in the order of loading, and those being read.
        self._todo: dict[tuple[int, int], None] = {}
        self._arriving: dict[tuple[int, int], Future[Expert]] = {}
        self._used = [[0] * experts for _ in range(layers)]
        self._hits = [[0] * experts for _ in range(layers)]
        self._misses = [[0] * experts for _ in range(layers)]
        self._tick = 0
        self._bytes_lock = Lock()
        self._place_lock = Lock()
        self.switch(plan, budget_bytes)
        self.load_all()

    def switch(self, plan: Plan, budget_bytes: int | None = None) -> None:
        """Make `plan` the one in force: give up what it does not keep; `load_next` then brings in what it adds.

        From here on every expert has the plan's precision. Must not run during a forward pass.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        if plan.shape != self.plan.shape:
            raise UserError(f"plan: made for {plan.shape} layers and experts, the model has {self.plan.shape}")
        self.source.require(np.unique(plan.bits).tolist())
        needed = bytes_needed(self.source, plan, self.swap_buffers)
        if budget_bytes is not None and needed > budget_bytes:
            raise UserError(
                f"the plan takes {needed} bytes for experts and swap buffers, {needed - budget_bytes} more than the "
                f"budget leaves ({budget_bytes})"
            )
        with self._quiet():
            for layer, expert in list(self._held):
                same = plan.bits[layer, expert] == self.plan.bits[layer, expert]
                if not (same and plan.resident[layer, expert]):
                    self._rows[layer][expert] = None
                    self._free(self._held.pop((layer, expert)))
            while self._swap:
                self._free(self._swap.popleft())
            self.tier.reclaim()
            self.plan, self.budget_bytes = plan, needed if budget_bytes is None else budget_bytes
            largest = int(expert_sizes(self.source, plan)[~plan.resident].max(initial=0))
            if largest:
                self._swap.extend(self._allocate(largest) for _ in range(self.swap_buffers))
            self._todo = {
                (layer, expert): None
                for layer, expert in np.argwhere(plan.resident).tolist()
                if (layer, expert) not in self._held
            }

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

    def fetch(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Expert]]:
        """Yield `(index, expert)` for each of `wanted` (distinct): residents first, then misses as they arrive.

        An expert must not be kept after the next one is asked for.

        Args:
            tokens: how many each of `wanted` will be given; one by default.
        """
        row = self._rows[layer]
        found = [(index, row[index]) for index in wanted]
        self._count(layer, found)
        missing = [index for index, expert in found if expert is None]
        if not missing:
            yield from found  # type: ignore[misc]
            return
        counters = self.counters
        shares = dict(zip(wanted, tokens or [1] * len(wanted), strict=True))
        bits = self.plan.bits[layer, missing].tolist()
        near = self.tier.in_place(layer, missing, bits, [shares[index] for index in missing])
        counters.in_place += len(near)
        yield from self._fetch_around(layer, wanted, [index for index in missing if index not in near], near, found)

    def at_hand(self, layer: int, wanted: Sequence[int]) -> list[Expert] | None:
        """Return `wanted`, in that order, if all are resident; they count as looked up. Else None."""
        row = self._rows[layer]
        found = [row[index] for index in wanted]
        resident = [expert for expert in found if expert is not None]
        if len(resident) < len(found):
            return None
        self._count(layer, list(zip(wanted, found, strict=True)))
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
        if self.policy == "lru":
            self._tick += 1
            for index, _ in found:
                self._used[layer][index] = self._tick

    def _fetch_around(
        self,
        layer: int,
        wanted: Sequence[int],
        missing: list[int],
        near: Mapping[int, Expert],
        found: list[tuple[int, Expert | None]],
    ) -> Iterator[tuple[int, Expert]]:
        # With each read its swap buffer, or None where the expert goes to a place of its own.
        waiting, reading = deque(missing), deque[tuple[int, Future[Expert], Buffer | None]]()

        def start() -> None:
            while waiting:
                buffer = None
                task = self._load_to_stay(layer, waiting[0], wanted)
                if task is None:
                    if not self._swap:
                        return
                    buffer = self._swap.popleft()
                    task = self.tier.submit(buffer, self._read, layer, waiting[0], buffer, self.plan)
                reading.append((waiting.popleft(), task, buffer))

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
                began = time.perf_counter()
                expert = reading[0][1].result()
                self.counters.wait_s += time.perf_counter() - began
                index, _, buffer = reading.popleft()
                yield index, expert
                expert = None
                if buffer is not None:
                    self._swap.append(buffer)
                start()
        finally:
            # After a fault the buffers come back once the reader is done with them.
            for _, task, buffer in reading:
                task.exception()
                if buffer is not None:
                    self._swap.append(buffer)

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
        """Start, or find, the read of a missed expert that is to stay: one that the plan wants, or that `lru` keeps."""
        with self._place_lock:
            if (expert := self._rows[layer][index]) is not None:  # it has come since it was missed
                there: Future[Expert] = Future()
                there.set_result(expert)
                return there
            if (layer, index) in self._arriving:
                return self._arriving[layer, index]
            if (layer, index) in self._todo:
                return self._start_load(layer, index)
            if self.policy == "lru" and (buffer := self._evict(layer, index, wanted)) is not None:
                return self._start_load(layer, index, buffer)
        return None

    def _start_load(self, layer: int, expert: int, buffer: Buffer | None = None) -> Future[Expert]:
        """Start to read an expert into a place of its own; the place lock is held."""
        plan = self.plan
        if buffer is None:
            buffer = self._allocate(self._size(plan, layer, expert))
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
            self._free(buffer)
            raise
        with self._place_lock:
            del self._arriving[layer, expert]
            self._rows[layer][expert] = loaded
            self._held[layer, expert] = buffer
        return loaded

    def _evict(self, layer: int, index: int, wanted: Sequence[int]) -> Buffer | None:
        """Take the buffer of the least recently used expert of this layer and precision, if one can be spared."""
        bits = self.plan.bits[layer]
        row, used = self._rows[layer], self._used[layer]
        spare = [e for e, expert in enumerate(row) if expert is not None and e not in wanted]
        spare = [e for e in spare if bits[e] == bits[index]]
        if not spare:
            return None
        victim = min(spare, key=used.__getitem__)
        row[victim] = None
        return self._held.pop((layer, victim))

    def _read(self, layer: int, expert: int, buffer: Buffer, plan: Plan) -> Expert:
        bits = int(plan.bits[layer, expert])
        record = self.source.record(layer, expert, bits)
        self.tier.load(buffer, record)
        with self._bytes_lock:
            self.counters.bytes_moved += record.nbytes
        return self.source.build(layer, expert, bits, buffer.tensors(record))

    def _size(self, plan: Plan, layer: int, expert: int) -> int:
        return self.source.nbytes(int(plan.bits[layer, expert]))

    def _allocate(self, nbytes: int) -> Buffer:
        with self._bytes_lock:
            if self.bytes_fast + nbytes > self.budget_bytes:
                raise RuntimeError(f"{nbytes} bytes more would exceed the budget of {self.budget_bytes}")
            self.bytes_fast += nbytes
        buffer: Buffer = self.tier.allocate(nbytes)
        return buffer

    def _free(self, buffer: Buffer) -> None:
        nbytes = buffer.nbytes
        del buffer
        with self._bytes_lock:
            self.bytes_fast -= nbytes


def expert_sizes(source: Source[Any], plan: Plan) -> IntArray:
    """Return what each expert takes in the fast tier at the plan's precision, int `[L, E]`."""
    return plan.expert_bytes({bits: source.nbytes(bits) for bits in np.unique(plan.bits).tolist()})


def bytes_needed(source: Source[Any], plan: Plan, swap_buffers: int) -> int:
    """Return the bytes that `plan`'s residents and the swap buffers for its other experts take."""
    sizes = expert_sizes(source, plan)
    return int(sizes[plan.resident].sum()) + max(swap_buffers, 1) * int(sizes[~plan.resident].max(initial=0))

"""A discrete-event check of the closed forms: stages with finite buffers, simulated item by item with simpy.

::

    DRAM ─lines→ SRAM ──→ converters ──→ optical core ──→ ADCs ──→ SRAM ──→ DRAM
         (line buffer)  FIFO         FIFO             FIFO     FIFO     FIFO

An item is one kernel location (PCNNA) or one tile (Winograd). A stage takes an item from the FIFO before it, holds its
resource, and puts it into the FIFO behind it; it waits where a FIFO is empty or full, and where two stages share the
SRAM's or the DRAM's port. Rows of the input come from DRAM into the SRAM's line buffer; rows that no window needs any
more make room. The closed forms know no buffers: they take the slowest resource.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from lumoe.errors import UserError
from lumoe.progress import track


@dataclass(frozen=True)
class Stage:
    """One step of an item: `seconds` on `resource`; stages that name the same resource share its one port."""

    resource: str
    seconds: float


@dataclass(frozen=True)
class LineBuffer:
    """Rows of the input that are held while windows slide over them.

    Attributes:
        resource: which port loads them.
        seconds: to load one row.
        capacity: rows that fit, at least the height of a window.
        needed: for each row of outputs, the input rows that must have been loaded, counted from the first.
        freed: for each row of outputs, the input rows that are no longer needed once it is done.
    """

    resource: str
    seconds: float
    capacity: int
    needed: tuple[int, ...]
    freed: tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One pass over a layer: its weights are written (`preparation_s`), then its items stream through the stages.

    Attributes:
        items: per image.
        images: streamed back to back after one preparation.
        repeats: how often the layer does this, one after another.
        lines: the line buffer that feeds the first stage; its rows of outputs share the items evenly.
        refetches: the cache is too small, so that items go to DRAM by themselves.
    """

    layer: str
    stages: tuple[Stage, ...]
    items: int
    preparation_s: float = 0.0
    images: int = 1
    repeats: int = 1
    lines: LineBuffer | None = None
    refetches: bool = False


@dataclass
class Outcome:
    """What one job took: seconds from start to drained, and seconds in which each resource was busy."""

    duration_s: float
    busy_s: dict[str, float] = field(default_factory=dict)


def simulate(job: Job, *, depth: int) -> Outcome:
    """Run one job once.

    Args:
        depth: items that each FIFO between two stages holds.

    Raises:
        UserError: a depth below one.
    """
    if depth < 1:
        raise UserError(f"the depth of the buffers is {depth}, but must be at least 1")
    return _Simulation(job, depth).run()


def layer_times(jobs: Sequence[Job], *, depth: int) -> dict[str, Outcome]:
    """Run jobs one after another; return, per layer, seconds and busy seconds per image."""
    layers: dict[str, Outcome] = {}
    for job in track(jobs, "passes over layers"):
        once = simulate(job, depth=depth)
        layer = layers.setdefault(job.layer, Outcome(0.0))
        share = job.repeats / job.images
        layer.duration_s += once.duration_s * share
        for name, seconds in once.busy_s.items():
            layer.busy_s[name] = layer.busy_s.get(name, 0.0) + seconds * share
    return layers


Events = Generator[simpy.Event, Any, None]


class _Simulation:
    def __init__(self, job: Job, depth: int) -> None:
        self.job = job
        self.clock = simpy.Environment(initial_time=job.preparation_s)
        lines = [job.lines.resource] if job.lines else []
        users = [*lines, *(stage.resource for stage in job.stages)]
        self.busy = dict.fromkeys(users, 0.0)
        # A resource with one user needs no turns.
        self.ports = {name: simpy.Resource(self.clock) for name in set(users) if users.count(name) > 1}
        self.queues = [simpy.Container(self.clock, capacity=depth) for _ in job.stages[1:]]
        # Rows that are loaded and not yet claimed by a window, and room for more.
        self.loaded = simpy.Container(self.clock)
        self.room = simpy.Container(self.clock, init=job.lines.capacity) if job.lines else None

    def run(self) -> Outcome:
        if self.job.lines:
            self.clock.process(self._load(self.job.lines))
        last = [self.clock.process(self._work(number)) for number in range(len(self.job.stages))][-1]
        self.clock.run(until=last)
        return Outcome(self.clock.now, self.busy)

    def _hold(self, resource: str, seconds: float) -> Events:
        self.busy[resource] += seconds
        if resource not in self.ports:
            yield self.clock.timeout(seconds)
            return
        with self.ports[resource].request() as turn:
            yield turn
            yield self.clock.timeout(seconds)

    def _work(self, number: int) -> Events:
        stage = self.job.stages[number]
        before = self.queues[number - 1] if number else None
        behind = self.queues[number] if number < len(self.queues) else None
        for _ in range(self.job.images):
            for item in range(self.job.items):
                if before is not None:
                    yield before.get(1)
                elif self.job.lines:
                    yield from self._claim(self.job.lines, item)
                yield from self._hold(stage.resource, stage.seconds)
                if behind is not None:
                    yield behind.put(1)
                if before is None and self.job.lines:
                    yield from self._release(self.job.lines, item)

    def _load(self, lines: LineBuffer) -> Events:
        assert self.room is not None
        for _ in range(self.job.images):
            for _ in range(lines.needed[-1]):
                yield self.room.get(1)
                yield from self._hold(lines.resource, lines.seconds)
                yield self.loaded.put(1)

    def _claim(self, lines: LineBuffer, item: int) -> Events:
        """Wait at the start of a row of outputs until its input rows are there."""
        row, column = divmod(item, self.job.items // len(lines.needed))
        fresh = lines.needed[row] - (lines.needed[row - 1] if row else 0)
        if column == 0 and fresh:
            yield self.loaded.get(fresh)

    def _release(self, lines: LineBuffer, item: int) -> Events:
        """Make room at the end of a row of outputs."""
        assert self.room is not None
        row, column = divmod(item + 1, self.job.items // len(lines.needed))
        done = lines.freed[row - 1] - (lines.freed[row - 2] if row > 1 else 0) if row else 0
        if column == 0 and done:
            yield self.room.put(done)

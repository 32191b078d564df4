"""Continuous batching: sequences join and leave between any two steps of the engine.

One thread owns the engine. Each round it admits waiting sequences into free slots of the key-value cache, feeds some
prompt tokens, decodes one token of every running sequence in one pass, and hands out what came of it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from lumoe.moe.engine import heap
from lumoe.moe.planning.shape import KV_BLOCK
from lumoe.moe.serve.generation import Event, Failure, Generation, Piece
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.sampling import SampledToken, sample

log = logging.getLogger(__name__)
# Temporaries of a step stay with the C library, which would hold on to what the largest one took.
TRIM_S = 5.0
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one server takes on.

    Attributes:
        slots: sequences that are decoded together.
        context: tokens of a sequence, prompt and answer.
        queue: sequences that may wait for a slot.
        prefill_tokens: prompt tokens that are fed at most between two decode steps.
        threads: that the engine computes on; None: as many as torch is set to.
        share_prefixes: whether sequences begin with the keys and values of earlier ones that began alike.
    """

    slots: int = 16
    context: int = 2048
    queue: int = 128
    prefill_tokens: int = 512
    threads: int | None = None
    share_prefixes: bool = True


class QueueFullError(Exception):
    """No room for more waiting sequences; `retry_after_s` is how long one takes to leave."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} sequences are waiting already")
        self.retry_after_s = retry_after_s


class ClosedError(Exception):
    """The scheduler takes no more sequences."""


class Scheduler:
    """Runs generations on an engine."""

    def __init__(
        self,
        governor: Governor,
        metrics: Metrics,
        limits: Limits,
        post: Callable[[Callable[[], None]], None] = lambda call: call(),
    ) -> None:
        """Start.

        Args:
            governor: its pool has the keys and values; as many sequences as the pool's cache has are decoded together.
            post: runs a call on the thread where events are wanted, such as an event loop's `call_soon_threadsafe`.
        """
        self.engine, self.governor, self.metrics = governor.engine, governor, metrics
        self.pool, self.limits, self.post = governor.pool, limits, post
        self.cache = self.pool.cache
        self._free = list(range(len(self.cache.lengths)))[::-1]
        self._running: list[Generation] = []
        self._waiting: deque[Generation] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._events: list[tuple[Generation, Event]] = []
        self._condition = threading.Condition()
        self._closed = False
        self._trimmed = time.monotonic()
        self._plan, self._bits = self.engine.plan, self.engine.plan.bits.tobytes()
        mine = torch.get_num_threads()
        begun = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(limits.threads or mine, begun), name="lumoe-engine", daemon=True
        )
        self._thread.start()
        begun.wait()
        torch.set_num_threads(mine)

    @property
    def running(self) -> int:
        """Sequences that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that wait for one."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Queue sequences, all of them or none.

        Raises:
            QueueFullError: too many wait already.
            ClosedError: the scheduler was closed.
        """
        with self._condition:
            if self._closed:
                raise ClosedError("the server is shutting down")
            room = self.limits.queue + len(self._free) - len(self._waiting)
            if len(generations) > room:
                raise QueueFullError(len(self._waiting), self.metrics.retry_after_s())
            self._waiting.extend(generations)
            self._condition.notify()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run `function` on the engine's thread between two steps."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        with self._condition:
            if self._closed:
                raise ClosedError("the server is shutting down")
            self._calls.append(run)
            self._condition.notify()
        return future

    def close(self) -> None:
        """Fail what is left and stop; returns when the thread has ended."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _run(self, threads: int, begun: threading.Event) -> None:
        # At its first use a thread takes over the setting of the moment: from here on other threads leave it alone.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        begun.set()
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._closed or self._running or self._waiting or self._calls)
                if self._closed:
                    break
            try:
                self._serve_calls()
                self._round()
            except Exception as error:
                # What is of no sequence in particular, such as a change of plan, concerns all of them.
                log.exception("a round of the engine failed")
                self._fail(f"{type(error).__name__}: {error}")
            self._flush()
            self._trim()
        self._fail("the server was stopped")
        self._flush()

    def _round(self) -> None:
        self._drop_cancelled()
        self._admit()
        left = self.limits.prefill_tokens
        while left > 0 and (group := self._next_prompts(left)):
            left -= self._prefill(*group)
            self._serve_calls()
        self._grow()
        decoding = [generation for generation in self._running if generation.decoding]
        if decoding:
            began = time.perf_counter()
            logits = self._step(torch.tensor([generation.tokens[-1:] for generation in decoding]), decoding)
            if logits is not None:
                self.metrics.stepped(time.perf_counter() - began, len(decoding))
                self._hand_out(decoding, self._sample(logits, decoding))
        self.metrics.sample(self.running, self.waiting)

    def _trim(self) -> None:
        now = time.monotonic()
        if not self._running or now - self._trimmed > TRIM_S:
            heap.trim()
            self._trimmed = now

    def _serve_calls(self) -> None:
        if not self._calls:
            return
        self.governor.note(generation.preference for generation in self._running)
        while self._calls:
            self._calls.popleft()()
            # Before the next one: it may ask what is held under the budget that this one set.
            self._shrink()

    def _step(self, tokens: torch.Tensor, generations: Sequence[Generation]) -> torch.Tensor | None:
        """Return logits `[sequences, vocabulary]` of the last tokens; None if the engine failed, which ends these.

        Sequences whose prompts are scored come by themselves, and have that done here.
        """
        slots = [generation.slot for generation in generations if generation.slot is not None]
        for generation in generations:
            # What was computed at several precisions is nobody's beginning.
            if generation.precisions != self._precisions():
                generation.precisions = None
        try:
            logits = self.engine.step(tokens, self.cache, slots, last_only=not generations[0].unscored)
        except Exception as error:
            log.exception("a step of the engine failed")
            for generation in generations:
                self._fail_one(generation, error)
            return None
        for generation, row in zip(generations, logits, strict=True):
            self._score(generation, row)
            generation.fed += tokens.shape[1]
        return logits[:, -1]

    def _score(self, generation: Generation, logits: torch.Tensor) -> None:
        if generation.scores is not None and generation.unscored:
            try:
                generation.scores.take(logits, generation.fed)
            except Exception as error:
                log.error("a prompt could not be scored", exc_info=error)
                self._fail_one(generation, error)

    def _sample(self, logits: torch.Tensor, generations: Sequence[Generation]) -> list[SampledToken | Exception]:
        """Sample a token for each row; a fault in one of them is its own."""
        try:
            return list(sample(logits, [generation.sampler for generation in generations]))
        except Exception:
            log.exception("sampling failed; each sequence is sampled by itself")
        found: list[SampledToken | Exception] = []
        for row, generation in enumerate(generations):
            try:
                found += sample(logits[row : row + 1], [generation.sampler])
            except Exception as error:
                found.append(error)
        return found

    def _admit(self) -> None:
        self.governor.follow(generation.preference for generation in self._running)
        while self._free and self._waiting:
            # Precisions first: what was computed at others is no beginning for this one.
            self.governor.follow(generation.preference for generation in [*self._running, self._waiting[0]])
            if not self._begin(self._free[-1], self._waiting[0]):
                break
            with self._condition:
                generation = self._waiting.popleft()
                generation.slot = self._free.pop()
            self._running.append(generation)
        # Slots in rising order keep the cache's rows together, which spares a device's engine a copy.
        self._running.sort(key=lambda generation: generation.slot or 0)

    def _begin(self, slot: int, generation: Generation) -> bool:
        """Give a sequence the blocks for what it has, those of a known beginning among them; whether there were any.

        Beside running sequences some are left, so that these need not be paused at once.
        """
        generation.precisions = self._precisions()
        known = [] if generation.unscored else generation.tokens
        generation.fed = self.pool.begin(slot, known, generation.precisions)
        wanted = self.pool.missing(slot, len(generation.tokens) + 1)
        if not self._room(wanted + len(self._running)):
            self.cache.clear(slot)
            return False
        self.cache.reserve(slot, len(generation.tokens) + 1)
        if not generation.made:
            generation.reused = generation.fed
            self.pool.count(len(generation.prompt), generation.fed)
        return True

    def _room(self, blocks: int) -> bool:
        """Whether `blocks` more can be had: idle ones are given up first, then experts."""
        return self.pool.make_room(blocks) or (
            self.governor.make_room(self.pool.busy_blocks + blocks) and self.pool.make_room(blocks)
        )

    def _grow(self) -> None:
        """See to the blocks of the next token of each sequence; the youngest are paused where there are too few."""
        for generation in sorted(self._running, key=lambda generation: generation.times.arrived):
            if generation.decoding and generation.slot is not None:
                while not self._room(self.pool.missing(generation.slot, len(generation.tokens))):
                    self._pause(max(self._running, key=lambda running: running.times.arrived))
                    if generation.slot is None:
                        break
                else:
                    self.cache.reserve(generation.slot, len(generation.tokens))

    def _shrink(self) -> None:
        """Pause the youngest sequences where a change of budget left too little for all."""
        while len(self._running) > 1 and self.pool.busy_blocks > self.cache.limit:
            self._pause(max(self._running, key=lambda running: running.times.arrived))
        self.pool.set_limit(self.cache.limit)

    def _pause(self, generation: Generation) -> None:
        """Let a sequence wait without keys and values; they are computed again when it goes on."""
        self._leave(generation)
        generation.fed = 0
        self.metrics.paused()
        with self._condition:
            self._waiting.appendleft(generation)

    def _leave(self, generation: Generation) -> None:
        self._running.remove(generation)
        if generation.slot is None:
            return
        self.pool.end(generation.slot, generation.tokens, generation.precisions)
        with self._condition:
            self._free.append(generation.slot)
        generation.slot = None

    def _precisions(self) -> bytes:
        plan = self.engine.plan
        if plan is not self._plan:
            self._plan, self._bits = plan, plan.bits.tobytes()
            self.metrics.planned()
        return self._bits

    def _next_prompts(self, left: int) -> tuple[list[Generation], int] | None:
        """Choose sequences whose next piece of prompt is equally long: one pass takes them together."""
        unfed = [generation for generation in self._running if not generation.decoding]
        unfed.sort(key=lambda generation: generation.times.arrived)
        for generation in unfed:
            self._find_more(generation)
        unfed = [generation for generation in unfed if not generation.decoding]
        if not unfed:
            return None
        size = min(len(unfed[0].tokens) - unfed[0].fed, left)
        group, begun, unscored = [], set[tuple[int, ...]](), unfed[0].unscored
        for generation in unfed:
            # What begins as another one does waits for that one's keys and values, unless it cannot use them.
            begin = tuple(generation.tokens[: generation.fed + KV_BLOCK])
            fresh = size <= KV_BLOCK or begin not in begun or unscored
            # Logits of all positions and of the last one alone are not rounded alike: neither has them from the other.
            if len(generation.tokens) - generation.fed == size and generation.unscored == unscored and fresh:
                begun.add(begin)
                group.append(generation)
        group = group[: max(left // size, 1)] or unfed[:1]
        return sorted(group, key=lambda generation: generation.slot or 0), size

    def _find_more(self, generation: Generation) -> None:
        """Let a sequence that has not begun to be fed begin with what has become known since it came."""
        slot, precisions = generation.slot, self._precisions()
        begun = generation.fed > generation.reused or generation.made or generation.unscored
        if slot is None or begun or not self.pool.knows_more(generation.tokens, precisions, generation.fed):
            return
        self.cache.clear(slot)
        generation.precisions = precisions
        fed = self.pool.begin(slot, generation.tokens, precisions)
        self.cache.reserve(slot, len(generation.tokens) + 1)
        self.pool.count(0, fed - generation.reused)
        generation.fed = generation.reused = fed

    def _prefill(self, group: list[Generation], size: int) -> int:
        tokens = torch.tensor([generation.tokens[generation.fed : generation.fed + size] for generation in group])
        logits = self._step(tokens, group)
        if logits is None:
            return size * len(group)
        self.metrics.prompt_tokens(size * len(group))
        for generation in group:
            if generation.precisions is not None and generation.slot is not None:
                self.pool.keep(generation.slot, generation.tokens, generation.precisions)
        done = [row for row, one in enumerate(group) if one.fed == len(one.tokens) and one.slot is not None]
        for generation in [group[row] for row in done if group[row].sampling.max_tokens == 0]:
            self._events.append((generation, Piece("", (), "length")))
            self._release(generation, "length")
        if done := [row for row in done if group[row].sampling.max_tokens]:
            ready = [group[row] for row in done]
            self._hand_out(ready, self._sample(logits[done], ready))
        return size * len(group)

    def _hand_out(self, generations: Sequence[Generation], sampled: Sequence[SampledToken | Exception]) -> None:
        for generation, token in zip(generations, sampled, strict=True):
            before = generation.times.last_token
            try:
                if isinstance(token, Exception):
                    raise token
                piece = generation.accept(token)
            except Exception as error:
                # One sequence's fault is nobody else's.
                log.error("a sequence failed", exc_info=error)
                self._fail_one(generation, error)
                continue
            self.metrics.token(generation.times, before)
            if piece is not None:
                self._events.append((generation, piece))
                if piece.finish:
                    self._release(generation, piece.finish)

    def _drop_cancelled(self) -> None:
        with self._condition:
            for generation in [waiting for waiting in self._waiting if waiting.cancelled]:
                self._waiting.remove(generation)
                self.metrics.finished("cancelled")
        for generation in [running for running in self._running if running.cancelled]:
            self._release(generation, "cancelled")

    def _release(self, generation: Generation, outcome: str) -> None:
        self._leave(generation)
        self.metrics.finished(outcome)

    def _fail_one(self, generation: Generation, error: Exception) -> None:
        self._events.append((generation, Failure(f"{type(error).__name__}: {error}")))
        self._release(generation, "failed")

    def _fail(self, message: str) -> None:
        for generation in list(self._running):
            self._events.append((generation, Failure(message)))
            self._release(generation, "failed")
        if self._closed:
            with self._condition:
                for generation in self._waiting:
                    self._events.append((generation, Failure(message)))
                    self.metrics.finished("failed")
                self._waiting.clear()
            while self._calls:
                self._calls.popleft()()

    def _flush(self) -> None:
        if self._events:
            events, self._events = self._events, []
            # One wake-up of the receiving thread for all sequences of a step.
            self.post(partial(_deliver, events))


def _deliver(events: Sequence[tuple[Generation, Piece | Failure]]) -> None:
    for generation, event in events:
        try:
            generation.sink(event)
        except Exception:
            # Nobody hears of it any more.
            log.exception("an answer could not be delivered")
            generation.cancel()

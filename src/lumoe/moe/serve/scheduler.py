"""Continuous batching: sequences join and leave between any two steps of the engine.

One thread owns the engine. Each round it admits waiting sequences into free slots of the key-value cache, feeds some
prompt tokens, decodes one token of every running sequence in one pass, and hands out what came of it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch

from lumoe.moe.model.attention import KVCache
from lumoe.moe.serve.generation import Event, Failure, Generation, Piece
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.sampling import SampledToken, sample

log = logging.getLogger(__name__)
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
    """

    slots: int = 16
    context: int = 2048
    queue: int = 128
    prefill_tokens: int = 512
    threads: int | None = None


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
        cache: KVCache,
        limits: Limits,
        post: Callable[[Callable[[], None]], None] = lambda call: call(),
    ) -> None:
        """Start.

        Args:
            cache: keys and values; its number of sequences is the number of slots.
            post: runs a call on the thread where events are wanted, such as an event loop's `call_soon_threadsafe`.
        """
        self.engine, self.governor, self.metrics = governor.engine, governor, metrics
        self.cache, self.limits, self.post = cache, limits, post
        self._free = list(range(len(cache.lengths)))[::-1]
        self._running: list[Generation] = []
        self._waiting: deque[Generation] = deque()
        self._calls: deque[Callable[[], None]] = deque()
        self._events: list[tuple[Generation, Event]] = []
        self._condition = threading.Condition()
        self._closed = False
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
                raise QueueFullError(len(self._waiting), self.metrics.retry_after_s(len(self._waiting)))
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
        self._fail("the server was stopped")
        self._flush()

    def _round(self) -> None:
        self._drop_cancelled()
        self._admit()
        left = self.limits.prefill_tokens
        while left > 0 and (group := self._next_prompts(left)):
            left -= self._prefill(*group)
            self._serve_calls()
        decoding = [generation for generation in self._running if generation.made]
        if decoding:
            logits = self._step(torch.tensor([[generation.last] for generation in decoding]), decoding)
            if logits is not None:
                self._hand_out(decoding, self._sample(logits, decoding))
        self.metrics.sample(self.running, self.waiting)

    def _serve_calls(self) -> None:
        if self._calls:
            self.governor.note(generation.preference for generation in self._running)
        while self._calls:
            self._calls.popleft()()

    def _step(self, tokens: torch.Tensor, generations: Sequence[Generation]) -> torch.Tensor | None:
        """Return logits `[sequences, vocabulary]` of the last tokens; None if the engine failed, which ends these."""
        slots = [generation.slot for generation in generations if generation.slot is not None]
        try:
            return self.engine.step(tokens, self.cache, slots)[:, -1]
        except Exception as error:
            log.exception("a step of the engine failed")
            for generation in generations:
                self._fail_one(generation, error)
            return None

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
        with self._condition:
            while self._waiting and self._free:
                generation = self._waiting.popleft()
                generation.slot = self._free.pop()
                self.cache.lengths[generation.slot] = 0
                self._running.append(generation)
        # Slots in rising order keep the cache's rows together, which spares the engine a copy where lengths agree.
        self._running.sort(key=lambda generation: generation.slot or 0)
        self.governor.follow(generation.preference for generation in self._running)

    def _next_prompts(self, left: int) -> tuple[list[Generation], int] | None:
        """Choose sequences whose next piece of prompt is equally long: one pass takes them together."""
        unfed = [generation for generation in self._running if not generation.prefilled]
        if not unfed:
            return None
        unfed.sort(key=lambda generation: generation.times.arrived)
        size = min(len(unfed[0].prompt) - unfed[0].fed, left)
        group = [generation for generation in unfed if len(generation.prompt) - generation.fed == size]
        group = group[: max(left // size, 1)] or unfed[:1]
        return sorted(group, key=lambda generation: generation.slot or 0), size

    def _prefill(self, group: list[Generation], size: int) -> int:
        tokens = torch.tensor([generation.prompt[generation.fed : generation.fed + size] for generation in group])
        logits = self._step(tokens, group)
        if logits is None:
            return size * len(group)
        for generation in group:
            generation.fed += size
        self.metrics.prompt_tokens(size * len(group))
        done = [row for row, generation in enumerate(group) if generation.prefilled]
        if done:
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
                self.metrics.finished(generation, "cancelled")
        for generation in [running for running in self._running if running.cancelled]:
            self._release(generation, "cancelled")

    def _release(self, generation: Generation, outcome: str) -> None:
        self._running.remove(generation)
        if generation.slot is not None:
            with self._condition:
                self._free.append(generation.slot)
        generation.slot = None
        self.metrics.finished(generation, outcome)

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
                    self.metrics.finished(generation, "failed")
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

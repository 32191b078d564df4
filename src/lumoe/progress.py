"""Progress of loops that take over two seconds: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from functools import cache
from threading import RLock, Timer
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import TaskID

Item = TypeVar("Item")
SHORT_S = 2.0
LINE_EVERY_S = 10.0
QUIET = "LUMOE_QUIET"


def be_quiet() -> None:
    """Say nothing about progress from now on, here and in processes started from here."""
    os.environ[QUIET] = "1"


def quiet() -> bool:
    """Whether progress is wanted by nobody (`lumoe --quiet`, or the environment variable `LUMOE_QUIET`)."""
    return bool(os.environ.get(QUIET))


def track(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """Yield `items` and tell on standard error how far it is and how long it will still take.

    `total` is needed only where `items` has no length. Nothing is said before `SHORT_S` seconds have passed.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    if quiet():
        yield from items
    elif sys.stderr.isatty():
        yield from _bar(items, what, count)
    else:
        yield from _lines(items, what, count)


class _Screen:
    """The one live display of this process; a loop within a loop is one more line of it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self.bars = Progress(*columns, *times, console=Console(stderr=True), transient=True)
        self.loops = 0
        self.lock = RLock()

    def enter(self, what: str, count: int | None) -> TaskID:
        with self.lock:
            self.loops += 1
            return self.bars.add_task(what, total=count, visible=False)

    def show(self, task: TaskID) -> None:
        with self.lock:
            if task in self.bars.task_ids:
                self.bars.update(task, visible=True)
                self.bars.start()

    def leave(self, task: TaskID) -> None:
        with self.lock:
            self.bars.remove_task(task)
            self.loops -= 1
            if not self.loops:
                self.bars.stop()
                _screen.cache_clear()


@cache
def _screen() -> _Screen:
    return _Screen()


def _bar(items: Iterable[Item], what: str, count: int | None) -> Iterator[Item]:
    screen = _screen()
    task = screen.enter(what, count)
    # A first item that takes minutes must not look like a standstill.
    timer = Timer(SHORT_S, screen.show, (task,))
    timer.daemon = True
    timer.start()
    try:
        for item in items:
            yield item
            screen.bars.advance(task)
    finally:
        timer.cancel()
        screen.leave(task)


def _lines(items: Iterable[Item], what: str, count: int | None) -> Iterator[Item]:
    begin = time.monotonic()
    due = begin + SHORT_S
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now >= due:
            print(line(what, done, count, now - begin), file=sys.stderr, flush=True)
            due = now + LINE_EVERY_S


def line(what: str, done: int, count: int | None, elapsed_s: float) -> str:
    """Return one plain line of progress; the time left assumes that items take as long as those before."""
    if count is None:
        return f"{what}: {done}, {elapsed_s:.0f} s"
    left = elapsed_s / done * (count - done)
    return f"{what}: {done} of {count}, {elapsed_s:.0f} s, {left:.0f} s left"

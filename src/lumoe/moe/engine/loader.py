"""Changes of plan for a caller that must not wait: what a new plan adds is read in on a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from lumoe.moe.engine import heap
from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanChange:
    """A change of plan that is done, with its times in seconds from the asking.

    Attributes:
        freed_s: until the plan was in force and the memory that it gives up was free.
        loaded_s: until the last expert that it adds was there.
    """

    freed_s: float
    loaded_s: float


@dataclass(frozen=True, eq=False)
class _Pending:
    began: float
    freed_s: float


class BackgroundLoader:
    """Puts plans into force at once and loads their experts beside the running passes; until then they are misses.

    Attributes:
        fault: what kept an expert from being read; the expert stays a miss, and whoever needs it meets the same fault.
    """

    def __init__(self, engine: Engine, on_change: Callable[[PlanChange], None]) -> None:
        """Start the thread; `on_change` is called on it with every change that was not overtaken by another."""
        self.engine = engine
        self.fault: str | None = None
        self._on_change = on_change
        self._wake = threading.Condition()
        self._pending: _Pending | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._load, name="lumoe-load", daemon=True)
        self._thread.start()

    @property
    def settled(self) -> bool:
        """Whether everything that the plan keeps in the fast tier is there."""
        return self._pending is None

    def change(self, plan: Plan, budget_bytes: int) -> None:
        """Put `plan` into force; return when the memory that it gives up is free.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        began = time.perf_counter()
        self.engine.begin_change(plan, budget_bytes)
        with self._wake:
            self._pending = _Pending(began, time.perf_counter() - began)
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _load(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._pending is not None)
                if self._closed or self._pending is None:
                    return
                pending = self._pending
            try:
                more = self.engine.load_next()
            except Exception as error:
                log.exception("loading experts stopped")
                self.fault = str(error)
                more = False
            if not more:
                self._settle(pending)

    def _settle(self, pending: _Pending) -> None:
        with self._wake:
            if self._pending is not pending:
                return  # another change came meanwhile
            self._pending = None
        heap.trim()
        loaded_s = time.perf_counter() - pending.began
        self._on_change(PlanChange(pending.freed_s, loaded_s))

"""Which plan is in force: budget and preference in, changes of plan between two steps out.

A change takes effect at a step boundary: precisions switch and memory is given back there, in one go. Experts that the
new plan wants in the fast tier are then read beside the running steps; until one is there it is a miss like any other.
So each token is computed under exactly one plan, and no request waits for a change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.loader import BackgroundLoader, PlanChange
from lumoe.moe.planning.plan import Preference
from lumoe.moe.planning.planner import Planner, Proposal, Wish

# A request for quality is not followed by a change back before this time has passed without another one.
DWELL_S = 2.0


class Governor:
    """Chooses plans for a budget and brings them into force. Methods are the engine thread's unless said otherwise."""

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        preference: Preference,
        on_change: Callable[[PlanChange], None] = lambda change: None,
    ) -> None:
        """Take over an engine; its plan stays as it is until `set_budget`."""
        self.engine, self.planner = engine, planner
        self.memory = planner.rules.memory
        self.budget_bytes, self.default, self.preference = engine.bytes_fast, preference, preference
        self.changes = 0
        self.loader = BackgroundLoader(engine, on_change)
        self._asked: frozenset[Preference | None] = frozenset()
        self._last_quality = float("-inf")
        # Requests may change the preference back and forth under one budget.
        self._propose = lru_cache(maxsize=8)(planner.propose)

    def propose(self, budget_bytes: int, preference: Preference) -> Proposal:
        """Return the plan for a budget and what it is expected to give; any thread may ask.

        Raises:
            UserError: the budget is too small for this model.
        """
        return self._propose(Wish(budget_bytes, preference))

    @property
    def whole_bytes(self) -> int:
        """Bytes of the model with every expert at 16 bits: what a budget in % refers to."""
        return self.engine.model.whole_bytes

    @property
    def most_bytes(self) -> int:
        """Largest budget that does anything: the whole model, or what a GPU has for it."""
        most = self.engine.model.most_bytes
        return self.whole_bytes if most is None else min(self.whole_bytes, most)

    @property
    def minimum_bytes(self) -> int:
        """Smallest budget that any plan fits."""
        return self.memory.non_expert + self.memory.buffer

    @property
    def settled(self) -> bool:
        """Whether everything that the plan keeps in the fast tier is there."""
        return self.loader.settled

    def set_budget(self, budget_bytes: int, preference: Preference) -> None:
        """Change budget and default preference.

        Raises:
            UserError: the budget is too small, or more than a GPU has; nothing has changed then.
        """
        self._switch(budget_bytes, "quality" if "quality" in self._asked else preference)
        self.default = preference

    def note(self, preferences: Iterable[Preference | None]) -> None:
        """Take note of the preferences of the requests in flight without acting on them."""
        self._asked = frozenset(preferences)

    def follow(self, preferences: Iterable[Preference | None]) -> None:
        """Follow the preferences of the requests in flight.

        One that asks for quality gets it, whatever others ask for: speed is a wish, precision a property of the answer.
        """
        self.note(preferences)
        now = time.monotonic()
        if not self._asked:
            return
        if "quality" in self._asked:
            wanted: Preference = "quality"
            self._last_quality = now
        else:
            wanted = self.default if None in self._asked else "throughput"
        waiting = self.preference == "quality" and now - self._last_quality < DWELL_S
        if wanted != self.preference and not waiting:
            self._switch(self.budget_bytes, wanted)

    def close(self) -> None:
        """Stop loading."""
        self.loader.close()

    def _switch(self, budget_bytes: int, preference: Preference) -> None:
        self.loader.change(self.propose(budget_bytes, preference).plan, budget_bytes)
        self.budget_bytes, self.preference = budget_bytes, preference
        self.changes += 1

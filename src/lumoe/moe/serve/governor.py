"""Which plan is in force: budget and preference in, changes of plan between two steps out.

A change takes effect at a step boundary: precisions switch and memory is given back there, in one go. Experts that the
new plan wants in the fast tier are then read beside the running steps; until one is there it is a miss like any other.
So each token is computed under exactly one plan, and no request waits for a change.

The budget holds weights, swap buffers, and keys and values. Plans leave a share free for the latter; what a plan does
not use is theirs too. Sequences that need more than that take it from experts, by a new plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import lru_cache

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.kv_pool import KVPool
from lumoe.moe.engine.loader import BackgroundLoader, PlanChange
from lumoe.moe.planning.plan import Preference
from lumoe.moe.planning.planner import Planner, Proposal, Wish
from lumoe.moe.planning.shape import KV_BLOCK

# A request for quality is not followed by a change back before this time has passed without another one.
DWELL_S = 2.0
# Room that plans leave for keys and values when nobody asks for more.
USUAL_TOKENS = 2048
# Experts get back what keys and values took from them when these have not needed it for this time of work: a client
# that thinks before its next turn finds its last one.
GIVE_BACK_S = 30.0


class Governor:
    """Chooses plans for a budget and brings them into force. Methods are the engine thread's unless said otherwise."""

    def __init__(
        self,
        engine: Engine,
        planner: Planner,
        preference: Preference,
        pool: KVPool,
        on_change: Callable[[PlanChange], None] = lambda change: None,
    ) -> None:
        """Take over an engine and its keys and values; its plan stays as it is until `set_budget`."""
        self.engine, self.planner = engine, planner
        self.memory = planner.rules.memory
        self.budget_bytes, self.default, self.preference = engine.bytes_fast, preference, preference
        self.pool = pool
        # On a device keys and values have their memory from the beginning.
        everything = 0 if pool.cache.held else pool.cache.blocks
        self._least_blocks = -(-pool.cache.capacity // KV_BLOCK) if everything else pool.cache.held
        self._usual_blocks = min(-(-USUAL_TOKENS // KV_BLOCK), self._least_blocks) if everything else pool.cache.held
        self.kv_blocks = self._usual_blocks
        self._unneeded_s, self._followed_at = 0.0, time.monotonic()
        self.changes = 0
        # Whether the budget follows the control group's limit, see `GroupFollower`.
        self.follows = False
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
        if budget_bytes < self.minimum_bytes:
            memory = self.memory
            raise UserError(
                f"a budget of {budget_bytes} bytes is too small: weights outside the experts take {memory.non_expert} "
                f"bytes, the swap buffer {memory.least - memory.non_expert}, keys and values of one context "
                f"{self.minimum_bytes - memory.least}; give at least {self.minimum_bytes}"
            )
        most = self.engine.model.most_bytes
        if most is not None and budget_bytes > most + self.pool.cache.nbytes:
            raise UserError(
                f"a budget of {budget_bytes} bytes exceeds the {most + self.pool.cache.nbytes} that "
                f"{self.engine.device} has for weights, keys and values"
            )
        return self._propose(Wish(budget_bytes, preference, kv_bytes=self._share(budget_bytes) * self.block_bytes))

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of keys and values."""
        return self.pool.cache.block_bytes

    @property
    def whole_bytes(self) -> int:
        """Bytes of the model with every expert at 16 bits and the usual keys and values: what % refers to."""
        return self.engine.model.whole_bytes + self._usual_blocks * self.block_bytes

    @property
    def most_bytes(self) -> int:
        """Largest budget that does anything: the whole model, or what a GPU has for it, and all keys and values."""
        most, whole = self.engine.model.most_bytes, self.engine.model.whole_bytes
        return (whole if most is None else min(whole, most)) + self.pool.cache.blocks * self.block_bytes

    @property
    def minimum_bytes(self) -> int:
        """Smallest budget that any plan fits, with keys and values of one sequence as long as it may become."""
        return self.memory.least + self._least_blocks * self.block_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes in the fast tier now, keys and values among them."""
        return self.engine.bytes_fast + self.pool.nbytes

    @property
    def settled(self) -> bool:
        """Whether everything that the plan keeps in the fast tier is there."""
        return self.loader.settled

    def set_budget(self, budget_bytes: int, preference: Preference) -> None:
        """Change budget and default preference. Idle keys and values give way first, then experts.

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
        self._give_back(now)

    def make_room(self, blocks: int) -> bool:
        """Let sequences have `blocks` blocks of keys and values, taken from experts; whether the budget allows it."""
        step = max(self._usual_blocks // 2, 1)
        wanted = min(-(-blocks // step) * step, self.pool.cache.blocks, self._possible(self.budget_bytes))
        if wanted < blocks or wanted <= self.kv_blocks:
            return False
        self.kv_blocks, self._unneeded_s = wanted, 0.0
        self._switch(self.budget_bytes, self.preference)
        return True

    def close(self) -> None:
        """Stop loading."""
        self.loader.close()

    def _possible(self, budget_bytes: int) -> int:
        """Blocks of keys and values that a budget holds beside the least of the weights."""
        return max(budget_bytes - self.memory.least, 0) // self.block_bytes

    def _share(self, budget_bytes: int) -> int:
        """Blocks that a plan leaves free: what sequences were found to need, if the budget allows it."""
        return min(self.kv_blocks, self._possible(budget_bytes))

    def _give_back(self, now: float) -> None:
        passed, self._followed_at = min(now - self._followed_at, 1.0), now
        if self.kv_blocks == self._usual_blocks:
            return
        self._unneeded_s = 0.0 if self.pool.busy_blocks > self.kv_blocks // 2 else self._unneeded_s + passed
        if self._unneeded_s > GIVE_BACK_S:
            self.kv_blocks, self._unneeded_s = max(self._usual_blocks, self.pool.busy_blocks), 0.0
            self._switch(self.budget_bytes, self.preference)

    def _switch(self, budget_bytes: int, preference: Preference) -> None:
        plan, cache = self.propose(budget_bytes, preference).plan, self.pool.cache
        weights = self.engine.model.bytes_needed(plan)
        limit = min(cache.blocks, (budget_bytes - weights) // self.block_bytes)
        # Each gives way before the other takes its place.
        self.pool.set_limit(min(cache.limit, limit))
        self.loader.change(plan, budget_bytes - limit * self.block_bytes)
        self.pool.set_limit(limit)
        self.budget_bytes, self.preference = budget_bytes, preference
        self.changes += 1

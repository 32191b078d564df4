"""A budget that follows the limit of the memory control group, and gives memory back before the kernel acts."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from lumoe import memory_group
from lumoe.errors import UserError
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.last_budget import GROUP
from lumoe.moe.serve.scheduler import ClosedError, Scheduler

log = logging.getLogger(__name__)
POLL_S = 0.25
# Of free memory, for activations and what else a process takes as it runs.
SPARE_BYTES = 512 << 20
# More memory is taken only if it is worth a change of plan, and was there for some readings; less is given at once.
WORTH = 0.03
READINGS = 4


class GroupFollower:
    """Sets the budget to what the group leaves, from a thread of its own."""

    def __init__(self, governor: Governor, scheduler: Scheduler, spare_bytes: int) -> None:
        """Start to follow.

        Args:
            spare_bytes: of what the group leaves, kept for activations and what else the process takes as it runs.

        Raises:
            UserError: no group limits this process.
        """
        allowed(governor, spare_bytes)
        self._governor, self._scheduler, self._spare = governor, scheduler, spare_bytes
        self._stop = threading.Event()
        self._larger = 0
        self._thread = threading.Thread(target=self._run, name="lumoe-cgroup", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Follow no more."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self._follow()
            except ClosedError:
                return
            except Exception:
                log.exception("the budget could not follow the control group")

    def _follow(self) -> None:
        governor = self._governor
        wanted = allowed(governor, self._spare)
        budget = max(min(wanted, governor.most_bytes), governor.minimum_bytes)
        self._larger = self._larger + 1 if budget > governor.budget_bytes * (1 + WORTH) else 0
        if budget < governor.budget_bytes or self._larger >= READINGS:
            self._larger = 0
            governor.propose(budget, governor.default)  # planned here: the running steps need not wait for it
            change: Future[None] = self._scheduler.call(lambda: governor.set_budget(budget, governor.default))
            change.result()
            if wanted < budget:
                log.warning("the control group leaves %d bytes, the least for this model is %d", wanted, budget)


def allowed(governor: Governor, spare_bytes: int) -> int:
    """Return the budget that the process's control groups leave: what is held already, and what may still be taken.

    Raises:
        UserError: no group limits this process.
    """
    room = memory_group.room_bytes()
    if room is None:
        raise UserError(
            f"budget '{GROUP}': no control group limits the memory of this process; set its limit (memory.max or "
            "memory.limit_in_bytes), or give a budget in bytes"
        )
    return room + governor.held_bytes - spare_bytes

"""The fast tier of a model that is served from files: experts in RAM under the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.storage import PageBuffer, Record, fill
from lumoe.moe.offload.tier import T


def _without_a_team() -> None:
    """Keep OpenMP from giving the calling thread a team of its own.

    With more teams' threads than processors OpenMP puts threads to sleep between two operators: waking them would cost
    the computing thread more than this thread's operators could ever gain.
    """
    torch.get_num_threads()  # takes over the process's number in this thread, once; the limit must come after it
    threadpool_limits(1, user_api="openmp")


class FileTier:
    """Fast: RAM. Slow: files, read by one thread. The system takes pages back by itself."""

    def __init__(self, overlapped: bool = True) -> None:
        self.overlapped = overlapped
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lumoe-read", initializer=_without_a_team)

    def allocate(self, nbytes: int) -> PageBuffer:
        return PageBuffer(nbytes)

    def load(self, buffer: PageBuffer, record: Record) -> None:
        fill(buffer, record)

    def submit(self, buffer: PageBuffer, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._reader.submit(work, *arguments)

    def in_place(
        self, layer: int, missing: Sequence[int], bits: Sequence[int], tokens: Sequence[int]
    ) -> Mapping[int, Expert]:
        return {}

    def finish(self) -> None:
        pass

    def reclaim(self) -> None:
        pass

"""The fast tier of a model that is served from files: experts in RAM under the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.storage import PageBuffer, Record, fill, pieces
from lumoe.moe.offload.tier import DroppedError, T, always_wanted

# Threads that share each expert's bytes. One call for megabytes kept the disk busy where benchmarks/reads.py was run;
# more helped in a quiet hour and cost in a busy one. A disk that answers many at once may want more.
READERS = 1


def _without_a_team() -> None:
    """Keep OpenMP from giving the calling thread a team of its own.

    With more teams' threads than processors OpenMP puts threads to sleep between two operators: waking them would cost
    the computing thread more than this thread's operators could ever gain.
    """
    torch.get_num_threads()  # takes over the process's number in this thread, once; the limit must come after it
    threadpool_limits(1, user_api="openmp")


class FileTier:
    """Fast: RAM. Slow: files, read one expert at a time by a thread, or several that share its bytes.

    One at a time, for reads are asked for in the order in which they are needed, and the first is done soonest if it
    has the disk for itself. The system takes pages back by itself.
    """

    def __init__(self, overlapped: bool = True, readers: int = READERS) -> None:
        """Start the threads.

        Args:
            readers: how many share an expert's bytes.
        """
        self.overlapped, self._readers = overlapped, readers
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="lumoe-read", initializer=_without_a_team)
        # They call the system and nothing else: no operator of torch, and so no team.
        self._helpers = ThreadPoolExecutor(max(readers - 1, 1), thread_name_prefix="lumoe-help")

    def allocate(self, nbytes: int) -> PageBuffer:
        return PageBuffer(nbytes)

    def load(self, buffer: PageBuffer, record: Record, dropped: Callable[[], bool] = always_wanted) -> None:
        parts = pieces(record, self._readers)
        left = iter(parts)  # each piece goes to whoever asks next

        def read() -> None:
            for piece in left:
                if dropped():
                    raise DroppedError
                fill(buffer, record, piece)

        helpers = [self._helpers.submit(read) for _ in range(min(self._readers, len(parts)) - 1)]
        try:
            read()
        finally:
            wait(helpers)  # the buffer may be another's after this
        for helper in helpers:
            helper.result()

    def submit(self, buffer: PageBuffer, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._reader.submit(work, *arguments)

    def miss_cost(self, bits: int, nbytes: int) -> float:
        return float(nbytes)

    def in_place(
        self, layer: int, missing: Sequence[int], bits: Sequence[int], tokens: Sequence[int]
    ) -> Mapping[int, Expert]:
        return {}

    def finish(self) -> None:
        pass

    def reclaim(self) -> None:
        pass

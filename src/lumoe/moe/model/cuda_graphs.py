"""Pieces of work on fixed memory, recorded once and run again without the host's part: CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recorder(Protocol):
    """Turns a piece of work into one that does the same to the same memory and fills the same results anew."""

    def __call__(self, piece: Callable[[], T], /) -> Callable[[], T]: ...


def as_it_is(piece: Callable[[], T]) -> Callable[[], T]:
    """Return the piece: a device that needs no recording."""
    return piece


class CudaGraphs:
    """Records pieces as CUDA graphs that share one pool of memory; they must run in the order of recording."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, piece: Callable[[], T]) -> Callable[[], T]:
        with torch.cuda.device(self._device):
            self._warm_up(piece)
            graph = torch.cuda.CUDAGraph()
            # Other threads may be copying experts meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = piece()

        def replay() -> T:
            graph.replay()
            return result

        return replay

    def _warm_up(self, piece: Callable[[], Any]) -> None:
        # Libraries set themselves up in a first run, which must not be part of a graph.
        side = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(side):
            piece()
        torch.cuda.current_stream(self._device).wait_stream(side)


def recorder_for(device: torch.device) -> Recorder:
    """Return what records pieces on `device`."""
    return CudaGraphs(device) if device.type == "cuda" else as_it_is

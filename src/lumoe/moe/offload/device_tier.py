"""Fast: a device's memory. Slow: host memory that it copies from, on a stream beside the one that computes.

The part that only CUDA has is `CudaStreams`; on the CPU, where tests run the rest, `InlineStreams` takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import torch

from lumoe.moe.model.expert import Expert
from lumoe.moe.offload.host_experts import DeviceExperts, HostCopy
from lumoe.moe.offload.miss_cost import MissCosts, split_misses
from lumoe.moe.offload.storage import aligned, views
from lumoe.moe.offload.tier import DroppedError, always_wanted

T = TypeVar("T")
# Copies in flight: one runs, the next is already queued behind it on the copy stream.
READERS = 2
_PORTABLE = 1  # cudaHostRegisterPortable: pinned for every device


class Streams(Protocol):
    """The order of copies and computation on a device."""

    def mark(self) -> Any:
        """Return a point in the computation: everything that the calling thread has begun so far."""
        ...

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Any) -> None:
        """Copy once the computation has passed `after`; return when the copy is done."""
        ...

    def finish(self) -> None:
        """Wait until all computation is done."""
        ...

    def reclaim(self) -> None:
        """Hand memory that is not in use back to the device."""
        ...


class InlineStreams:
    """A device that does everything at once, in the order of asking: the CPU."""

    def mark(self) -> None:
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: None) -> None:
        target.copy_(source)

    def finish(self) -> None:
        pass

    def reclaim(self) -> None:
        pass


class CudaStreams:
    """A GPU: computation on the current stream, copies on one of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: torch.cuda.Event) -> None:
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_event(after)
            target.copy_(source, non_blocking=True)
            done.record(self._stream)
        # The expert is handed out when it is whole: no stream has to wait for another after this.
        done.synchronize()

    def finish(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()

    def reclaim(self) -> None:
        # What was given up may be cut into pieces of the wrong size for what comes next.
        self.finish()
        torch.cuda.empty_cache()


def streams_of(device: torch.device) -> Streams:
    """Return the streams of `device`."""
    return CudaStreams(device) if device.type == "cuda" else InlineStreams()


def pin_memory(memory: torch.Tensor) -> Callable[[], object]:
    """Pin host memory for copies to a GPU; return what undoes it.

    Raises:
        RuntimeError: the driver refuses, as it does beyond the limit on locked memory (`ulimit -l`).
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address, nbytes = memory.data_ptr(), memory.numel() * memory.element_size()
    failure = int(runtime.cudaHostRegister(address, nbytes, _PORTABLE))
    if failure:
        raise RuntimeError(f"the driver cannot pin {nbytes} bytes of host memory (CUDA error {failure})")
    return lambda: runtime.cudaHostUnregister(address)


class DeviceBuffer:
    """Memory of the device for one expert.

    Attributes:
        after: computation that may still read what was here before; a copy into the buffer waits for it.
    """

    __slots__ = ("after", "bytes", "nbytes")

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.nbytes = aligned(nbytes)
        self.bytes = torch.empty(self.nbytes, dtype=torch.uint8, device=device)
        self.after: Any = None

    def tensors(self, record: HostCopy) -> dict[str, torch.Tensor]:
        """Return the record's tensors as views of this memory."""
        return views(self.bytes, record.places)


class DeviceTier:
    """A device's memory, filled from `DeviceExperts`."""

    def __init__(
        self,
        experts: DeviceExperts,
        overlapped: bool = True,
        costs: MissCosts | None = None,
        streams: Streams | None = None,
    ) -> None:
        """Attach to a device.

        Args:
            costs: what a miss costs on either side; without them every missed expert is brought to the device.
        """
        self.overlapped, self._experts, self._costs = overlapped, experts, costs
        self._device = experts.device
        self.streams: Streams = streams or streams_of(self._device)
        self._readers = ThreadPoolExecutor(READERS if overlapped else 1, thread_name_prefix="lumoe-copy")

    def allocate(self, nbytes: int) -> DeviceBuffer:
        return DeviceBuffer(nbytes, self._device)

    def load(self, buffer: DeviceBuffer, record: HostCopy, dropped: Callable[[], bool] = always_wanted) -> None:
        if dropped():
            raise DroppedError
        # Buffers may be made within a forward pass, and the mode of that is its thread's own.
        with torch.inference_mode():
            self.streams.copy(buffer.bytes[: record.nbytes], record.bytes, buffer.after)

    def submit(self, buffer: DeviceBuffer, work: Callable[..., T], *arguments: Any) -> Future[T]:
        if not self.overlapped:
            self.streams.finish()
        # Here and not on the reader's thread: what the caller begins from now on may run beside the copy.
        buffer.after = self.streams.mark()
        return self._readers.submit(work, *arguments)

    def in_place(
        self, layer: int, missing: Sequence[int], bits: Sequence[int], tokens: Sequence[int]
    ) -> Mapping[int, Expert]:
        if self._costs is None:
            return {}
        stay = split_misses(bits, tokens, self._costs)
        return {
            index: self._experts.on_host(layer, index, value)
            for index, value, here in zip(missing, bits, stay, strict=True)
            if here
        }

    def miss_cost(self, bits: int, nbytes: int) -> float:
        return float(nbytes) if self._costs is None else self._costs.link(bits)

    def finish(self) -> None:
        self.streams.finish()

    def reclaim(self) -> None:
        self.streams.reclaim()

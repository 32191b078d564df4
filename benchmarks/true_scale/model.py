"""A Mixtral of any shape with random weights, experts in host memory and the rest on a device; is there room?"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import psutil
import torch

from lumoe.errors import UserError
from lumoe.files import read_yaml
from lumoe.machine import memory_bytes
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.checkpoint.weights import expected_shapes
from lumoe.moe.kernels.torch_kernels import int4_matmul, int4_packed
from lumoe.moe.model.cuda_graphs import recorder_for
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import pin_memory
from lumoe.moe.offload.host_experts import DeviceExperts, HostMemory, Writer
from lumoe.moe.offload.storage import aligned
from lumoe.moe.planning.plan import FULL_BITS

BITS = 4
SPREAD = 0.02  # standard deviation of the weights
# Values drawn, at most and at least; every tensor is a window of them from another start, so that gigabytes take
# seconds.
BLOCK, LEAST = 1 << 24, 1 << 16
# What the interpreter, the driver and the weights outside the experts on their way to the device take beside experts.
RESERVE = 6 << 30
ROUTER, NORM = "gate.weight", "norm"


def read_model(path: Path) -> Architecture:
    """Read a shape file of `data/shapes` or a `config.json`."""
    return Architecture.model_validate({**read_yaml(path), "model_type": "mixtral"})


class RandomWeights:
    """Stands for a checkpoint: tensors by name, and experts as `DeviceExperts` has them written."""

    def __init__(self, architecture: Architecture, seed: int = 0) -> None:
        self.architecture = architecture
        generator = torch.Generator().manual_seed(seed)
        size = min(BLOCK, max(LEAST, architecture.expert_parameters))
        self.normal = torch.randn(size, generator=generator).mul_(SPREAD).bfloat16()
        self._codes = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
        self._shapes = expected_shapes(architecture)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor outside the experts. Routers are zero: their logits are what is drawn and added."""
        shape = self._shapes[name]
        if name.endswith(ROUTER):
            return torch.zeros(shape, dtype=torch.bfloat16)
        if NORM in name:
            return torch.ones(shape, dtype=torch.bfloat16)
        found = torch.empty(shape, dtype=torch.bfloat16)
        fill_from(found, self.normal, hash_of(name))
        return found

    def write(self, layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill an expert's tensors. Any bytes are codes; their scales give them the spread of the 16-bit weights."""
        start = hash_of(f"{layer} {expert} {bits}")
        for name, tensor in tensors.items():
            if bits == FULL_BITS:
                fill_from(tensor, self.normal, start + 7919 * ord(name[-1]))
            elif name.endswith("scales"):
                step = SPREAD / np.sqrt((16**2 - 1) / 12)
                tensor[..., 0] = step
                tensor[..., 1] = step / 2  # codes 0..15 around 8: their mean is half a step below
            else:
                fill_from(tensor.view(torch.uint8), self._codes, start + 7919 * len(name))


def hash_of(name: str) -> int:
    """Return a number for a name, the same in every process."""
    value = 2166136261
    for byte in name.encode():
        value = (value ^ byte) * 16777619 % 2**32
    return value


def fill_from(tensor: torch.Tensor, block: torch.Tensor, start: int) -> None:
    """Fill a tensor with a block's values from `start` on, again and again."""
    flat, start = tensor.view(-1), start % len(block)
    done = 0
    while done < len(flat):
        size = min(len(block) - start, len(flat) - done)
        flat[done : done + size].copy_(block[start : start + size])
        done, start = done + size, 0


class SharedMemory:
    """A file of a memory file system, mapped: what one command builds there, the next one finds."""

    def __init__(self, path: Path, nbytes: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, nbytes)
            self._map = mmap.mmap(descriptor, nbytes)
        finally:
            os.close(descriptor)
        self.bytes = torch.from_numpy(np.frombuffer(self._map, dtype=np.uint8))


class SharedFolder:
    """Experts in files of a memory file system such as `/dev/shm`; a mark beside a file says that it is whole."""

    def __init__(self, folder: Path, write: Writer) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._write = folder, write

    def reserve(self, key: tuple[int, int, int], nbytes: int) -> tuple[HostMemory, bool]:
        """Return an expert's memory and whether an earlier command has filled it."""
        path = self._path(*key)
        whole = self._mark(*key).is_file() and path.stat().st_size == nbytes
        return SharedMemory(path, nbytes), whole

    def write(self, layer: int, expert: int, bits: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill an expert's tensors and mark them as whole."""
        self._write(layer, expert, bits, tensors)
        self._mark(layer, expert, bits).touch()

    def _path(self, layer: int, expert: int, bits: int) -> Path:
        return self._folder / f"layer-{layer:02d}-expert-{expert:02d}-{bits}bit"

    def _mark(self, layer: int, expert: int, bits: int) -> Path:
        return self._path(layer, expert, bits).with_suffix(".whole")


def make_experts(weights: RandomWeights, group_size: int, device: torch.device, share: Path | None) -> DeviceExperts:
    """Return the model's experts; each is written and pinned when it is first asked for."""
    pin = pin_memory if device.type == "cuda" else None
    store = None if share is None else SharedFolder(share, weights.write)
    write, reserve = (weights.write, None) if store is None else (store.write, store.reserve)
    return DeviceExperts(weights.architecture, {BITS: group_size}, write, device, torch.bfloat16, pin, reserve)


def make_decoder(weights: RandomWeights, device: torch.device) -> StaticDecoder:
    """Return the weights outside the experts, on the device."""
    return StaticDecoder(Decoder(weights, torch.bfloat16, from_codes=False), device, recorder_for(device))  # type: ignore[arg-type]


def build(experts: DeviceExperts, copies: Iterable[tuple[int, int, int]], say: Callable[[str], None]) -> int:
    """Write every copy (layer, expert, bits) that is not there; return their bytes."""
    total = 0
    wanted = sorted(copies)
    for number, (layer, expert, bits) in enumerate(wanted, start=1):
        total += experts.record(layer, expert, bits).nbytes
        if number % 64 == 0 or number == len(wanted):
            say(f"built {number} of {len(wanted)} copies of experts, {total / 1e9:.1f} GB")
    return total


def check_host(needed: int, host_bytes: int | None) -> None:
    """Check that so many bytes of experts fit the host's memory.

    Args:
        host_bytes: memory to count with where the system shows less than there is; by default what is available.

    Raises:
        UserError: they do not.
    """
    available = min(psutil.virtual_memory().available, memory_bytes()) if host_bytes is None else host_bytes
    if needed + RESERVE > available:
        raise UserError(
            f"host memory: the experts take {needed / 1e9:.1f} GB and {RESERVE / 1e9:.1f} GB are kept free, but there "
            f"are {available / 1e9:.1f} GB: leave out counts of quantised experts (all at 4 bits need hardly more than "
            "the 4-bit copies), or give --host-memory where the system shows less than it has"
        )


def check_share(folder: Path, needed: int) -> None:
    """Raise UserError unless the file system of a shared folder holds so many bytes, those already there counted."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    free = psutil.disk_usage(str(folder)).free + there
    if aligned(needed) > free:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB are free and {needed / 1e9:.1f} GB are needed: remount it larger "
            f"(mount -o remount,size={needed // 2**30 + 2}G {folder.parent}) or leave --share out"
        )


def check_kernel(device: torch.device) -> float:
    """Return the relative error of the device's int4 product against float32; a wrong order of codes shows at once.

    Raises:
        UserError: it is not the product of the weights.
    """
    from lumoe.moe.kernels.affine import nearest
    from lumoe.moe.kernels.torch_kernels import pack_int4

    generator = torch.Generator().manual_seed(0)
    matrix = nearest(torch.randn(256, 512, generator=generator), 4, 64)
    hidden = torch.randn(4, 512, generator=generator).bfloat16()
    packed, scales = pack_int4(matrix, device)
    if tuple(packed.shape) != int4_packed(device, 256, 512).shape:
        raise UserError(f"{device.type}: this torch packs int4 codes as {tuple(packed.shape)}, which is not known here")
    found = int4_matmul(device)(hidden.to(device), packed.to(device), 64, scales.to(device)).float().cpu()
    expected = hidden.float() @ matrix.dequantize().t()
    error = float((found - expected).norm() / expected.norm())
    if not error < 0.02:
        raise UserError(
            f"{device.type}: torch's int4 product is off by {error:.2g}; this version's layout is not known here"
        )
    return error

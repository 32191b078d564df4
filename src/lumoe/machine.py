"""What this machine has: processor, memory, disk, accelerators. Everything asked of the system, nothing assumed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lumoe import memory_group

CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as its driver names it; memory in bytes."""

    name: str
    memory_bytes: int
    driver: str


def cpu_name() -> str:
    """Return the processor's model name, or its architecture where the system does not tell."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the names of the processor's instruction sets, as Linux lists them; empty where it does not."""
    return frozenset(_cpu_field("flags").split())


def _cpu_field(name: str) -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or its container's limit if that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else ""
        if text.isdigit():
            total = min(total, int(text))
    return total


def available_bytes() -> int:
    """Return the memory that this process could still take: what is free or can be freed, within its container."""
    kilobytes = _memory_fields().get("MemAvailable")
    free = int(kilobytes.split()[0]) * 1024 if kilobytes else memory_bytes()
    room = memory_group.room_bytes()
    return free if room is None else min(free, room)


def _memory_fields() -> dict[str, str]:
    information = Path("/proc/meminfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.is_file() else []
    return {key: value for key, _, value in (line.partition(":") for line in lines)}


def disk_free_bytes(folder: Path) -> int:
    """Return the free bytes of the file system of `folder`."""
    return shutil.disk_usage(folder).free


def gpus() -> list[Gpu]:
    """Return the NVIDIA GPUs that the driver reports, none without a driver. Does not import torch."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in answer.splitlines():
        name, memory_mib, driver = (part.strip() for part in line.rsplit(",", 2))
        found.append(Gpu(name, int(memory_mib) * 2**20, driver))
    return found

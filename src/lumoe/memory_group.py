"""The memory control groups of this process (Linux, versions 1 and 2): what it may take before the kernel acts.

A group counts files that the kernel can drop at once; what is left to take is judged without them. Of version 2 the
lower of `memory.high` and `memory.max` counts, of version 1 that of the soft limit and the limit: lower one of the two
that only slow down, and the process gives memory back before the kernel takes a life for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
PROCESS = Path("/proc/self/cgroup")


@dataclass(frozen=True)
class MemoryGroup:
    """One group.

    Attributes:
        limits: files with its limits; those without a number set none.
        used: file with the bytes in use.
        droppable: fields of `memory.stat` that count files in memory.
    """

    limits: tuple[Path, ...]
    used: Path
    droppable: tuple[str, ...]

    @property
    def limit_bytes(self) -> int | None:
        """The lowest limit; None if it has none."""
        found = [number for path in self.limits if (number := _number(path)) is not None]
        return min(found, default=None)

    @property
    def used_bytes(self) -> int:
        """Bytes in use that the kernel cannot drop."""
        fields = dict(line.split() for line in _text(self.used.with_name("memory.stat")).splitlines() if " " in line)
        droppable = sum(int(fields.get(name, 0)) for name in self.droppable)
        return max((_number(self.used) or 0) - droppable, 0)


def memory_groups(mount: Path = MOUNT, process: Path = PROCESS) -> Iterator[MemoryGroup]:
    """Yield the groups that this process is in, the innermost first."""
    for line in _text(process).splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            names, used, droppable = ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file")
            root = mount if (mount / "cgroup.controllers").is_file() else mount / "unified"
        elif "memory" in controllers.split(","):
            names, used = ("memory.limit_in_bytes", "memory.soft_limit_in_bytes"), "memory.usage_in_bytes"
            droppable, root = ("total_inactive_file", "total_active_file"), mount / "memory"
        else:
            continue
        folder = root / place.lstrip("/")
        # Within a container the place may be told as the machine sees it, and the root be the container's own group.
        for group in dict.fromkeys(
            [folder, *(parent for parent in folder.parents if parent.is_relative_to(root)), root]
        ):
            if (group / used).is_file():
                yield MemoryGroup(tuple(group / name for name in names), group / used, droppable)


def room_bytes(mount: Path = MOUNT, process: Path = PROCESS) -> int | None:
    """Return the bytes that this process may still take; None if no group sets a limit."""
    rooms = [
        limit - group.used_bytes for group in memory_groups(mount, process) if (limit := group.limit_bytes) is not None
    ]
    return max(min(rooms), 0) if rooms else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    # Version 1 writes no limit as the largest multiple of a page.
    return int(text) if text.isdigit() and int(text) < 1 << 62 else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""

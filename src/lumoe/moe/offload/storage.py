"""The slow tier on a machine without a GPU: files that are read past the page cache into memory of our own.

A read that the page cache answers is memory speed in disguise, and the cache would hold a second copy of the weights
outside the byte budget. `O_DIRECT` avoids both; where a file system refuses it, pages are dropped after each read.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lumoe.anonymous_memory import anonymous
from lumoe.errors import UserError
from lumoe.moe.checkpoint.reads import READS

BLOCK = 4096
# Pieces of a read, multiples of BLOCK: worth a call of their own, and short enough that a dropped guess ends soon.
LEAST_PIECE, MOST_PIECE = 1 << 19, 8 << 20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """One aligned read: `nbytes` bytes at `offset` of `file` go to `at` in the buffer. All multiples of BLOCK."""

    file: DirectFile
    offset: int
    nbytes: int
    at: int


@dataclass(frozen=True)
class Place:
    """A tensor inside a buffer."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    at: int


@dataclass(frozen=True)
class Record:
    """Where an expert's bytes lie on the slow tier and what they are once read into `nbytes` bytes of memory."""

    reads: tuple[Read, ...]
    places: tuple[Place, ...]
    nbytes: int


class PageBuffer:
    """Page-aligned memory that goes back to the system as soon as the last reference is dropped."""

    __slots__ = ("bytes", "nbytes", "view")

    def __init__(self, nbytes: int) -> None:
        self.nbytes = aligned(nbytes)
        memory = anonymous(self.nbytes)
        if self.nbytes >= 2 << 20 and hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(memory)
        self.bytes = torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))

    def tensors(self, record: Record) -> dict[str, torch.Tensor]:
        """Return the record's tensors as views of this buffer."""
        return views(self.bytes, record.places)


class DirectFile:
    """A file opened for reading past the page cache."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        self.path = path
        name = f"/proc/self/fd/{descriptor}" if descriptor is not None else str(path)
        try:
            self.descriptor = os.open(name, os.O_RDONLY | os.O_DIRECT)
            self.direct = True
        except OSError:
            self.descriptor = os.open(name, os.O_RDONLY)
            self.direct = False
            log.warning("%s: the file system refuses O_DIRECT; pages are dropped after each read instead", path)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset`; return how many bytes the file had."""
        got = 0
        while got < len(view):
            step = os.preadv(self.descriptor, [view[got:]], offset + got)
            got += step
            if step == 0 or got % BLOCK:  # the end of the file
                break
        READS.add(weights=got)
        if not self.direct:
            os.posix_fadvise(self.descriptor, offset, len(view), os.POSIX_FADV_DONTNEED)
        return got

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class Spill:
    """A nameless file for experts whose bytes on disk are not yet what the kernels multiply; gone with the process."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the engine
        self._direct: DirectFile | None = None
        self._path = folder
        self._end = 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    def write(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> Record:
        """Append `tensors` as one aligned slot and return where it is."""
        places, at = [], 0
        for name, value in tensors:
            at = aligned(at, 64)
            places.append(Place(name, value.dtype, tuple(value.shape), at))
            at += value.numel() * value.element_size()
        size = aligned(at)
        for (_, value), place in zip(tensors, places, strict=True):
            self._write(value, self._end + place.at)
        os.ftruncate(self._file.fileno(), self._end + size)
        os.fdatasync(self._file.fileno())
        os.posix_fadvise(self._file.fileno(), self._end, size, os.POSIX_FADV_DONTNEED)
        if self._direct is None:
            self._direct = DirectFile(self._path / "(spill)", self._file.fileno())
        record = Record((Read(self._direct, self._end, size, 0),), tuple(places), size)
        self._end += size
        return record

    def _write(self, value: torch.Tensor, offset: int) -> None:
        value = value.contiguous()
        raw = (ctypes.c_char * (value.numel() * value.element_size())).from_address(value.data_ptr())
        view, done = memoryview(raw).cast("B"), 0
        try:
            while done < len(view):
                done += os.pwrite(self._file.fileno(), view[done:], offset + done)
        except OSError as error:
            raise UserError(
                f"{self._path}: no room to spill experts ({error.strerror}); choose another folder"
            ) from None


def aligned(size: int, to: int = BLOCK) -> int:
    """Round `size` up to a multiple of `to`."""
    return -(-size // to) * to


def span(
    files: dict[Path, DirectFile], tensors: Sequence[tuple[str, Path, int, torch.dtype, tuple[int, ...]]]
) -> Record:
    """Return the record of tensors that lie in files as (name, path, offset, dtype, shape).

    Neighbours are joined into one read. Offsets in a buffer keep the file's position within a block, as aligned reads
    demand, so a tensor has the same alignment (and the same sums, to the last bit) each time that it is read.
    """
    pieces = sorted(tensors, key=lambda item: (str(item[1]), item[2]))
    reads: list[Read] = []
    places: list[Place] = []
    at = 0
    for name, path, offset, dtype, shape in pieces:
        begin = offset // BLOCK * BLOCK
        end = aligned(offset + torch.Size(shape).numel() * dtype.itemsize)
        last = reads[-1] if reads else None
        if last and last.file.path == path and begin <= last.offset + last.nbytes:
            reads[-1] = Read(last.file, last.offset, max(end, last.offset + last.nbytes) - last.offset, last.at)
        else:
            if path not in files:
                files[path] = DirectFile(path)
            reads.append(Read(files[path], begin, end - begin, at))
        places.append(Place(name, dtype, shape, reads[-1].at + offset - reads[-1].offset))
        at = reads[-1].at + reads[-1].nbytes
    return Record(tuple(reads), tuple(places), at)


def pieces(record: Record, readers: int) -> list[Read]:
    """Cut a record's reads into pieces for `readers` that share them: none so small that asking costs more than it."""
    most = min(max(aligned(-(-record.nbytes // readers)), LEAST_PIECE), MOST_PIECE)
    return [
        Read(read.file, read.offset + begin, min(most, read.nbytes - begin), read.at + begin)
        for read in record.reads
        for begin in range(0, read.nbytes, most)
    ]


def fill(buffer: PageBuffer, record: Record, piece: Read) -> None:
    """Read a piece of a record into a buffer.

    Raises:
        UserError: the file ends before the record does.
    """
    end = piece.at + piece.nbytes
    there = piece.at + piece.file.read_into(buffer.view[piece.at : end], piece.offset)
    if there < end and any(
        place.at < end and place.at + torch.Size(place.shape).numel() * place.dtype.itemsize > there
        for place in record.places
    ):
        raise UserError(f"{piece.file.path}: cut off at {piece.offset + there - piece.at} bytes; fetch the file again")


def lay_out(tensors: Sequence[tuple[str, torch.dtype, tuple[int, ...]]]) -> tuple[Place, ...]:
    """Return places one after another, each at a multiple of 256 bytes, as device allocations are."""
    places, at = [], 0
    for name, dtype, shape in tensors:
        places.append(Place(name, dtype, shape, at))
        at = aligned(at + torch.Size(shape).numel() * dtype.itemsize, 256)
    return tuple(places)


def views(memory: torch.Tensor, places: Sequence[Place]) -> dict[str, torch.Tensor]:
    """Return the tensors at `places` of uint8 `memory`."""
    found = {}
    for place in places:
        size = torch.Size(place.shape).numel() * place.dtype.itemsize
        found[place.name] = memory[place.at : place.at + size].view(place.dtype).view(place.shape)
    return found


def spill_folder(wanted: str | Path | None, beside: Sequence[str | Path]) -> Path:
    """Return the folder for spilled experts: the one asked for, else the first of `beside` that can be written to.

    The system's folder for temporary files comes last: on many machines it is memory.
    """
    if wanted is not None and not Path(wanted).is_dir():
        raise UserError(f"{wanted}: no such folder for spilled experts")
    for folder in [wanted] if wanted is not None else beside:
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(BLOCK))
        except OSError:
            continue
        return Path(folder)
    return Path(tempfile.gettempdir())

"""Safetensors files, read by their headers: where each tensor lies, before any of it is in memory."""

from __future__ import annotations

import json
import math
import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.files import read_json, unique_keys
from lumoe.moe.checkpoint.reads import READS
from lumoe.moe.checkpoint.storage import FLOATS

DTYPES: dict[str, torch.dtype] = {kind: getattr(torch, name) for kind, name in FLOATS.items()}
CODES = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "F8_E4M3": torch.float8_e4m3fn}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The header of a 50-GB shard is a few MB; a larger length means that the file is not safetensors.
LARGEST_HEADER = 100 << 20
_THREAD = threading.local()


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `nbytes` bytes at `offset` of the file `path`.

    Attributes:
        name: under which the file has it, for messages.
    """

    path: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def entries(self) -> tuple[Entry, ...]:
        """This alone."""
        return (self,)

    def part(self, index: int, of: int, shape: tuple[int, ...]) -> Entry:
        """Return one of `of` equal pieces that follow one another, as a tensor of `shape`."""
        size = self.nbytes // of
        return Entry(self.path, self.name, self.dtype, shape, self.offset + index * size, size)

    def read(self) -> torch.Tensor:
        """Read the tensor as it is stored.

        Raises:
            UserError: the file ends too early.
        """
        kept: dict[Entry, torch.Tensor] | None = getattr(_THREAD, "kept", None)
        if kept is not None and self in kept:
            return kept[self]
        raw = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, got = memoryview(raw.numpy().data), 0
            while got < self.nbytes and (step := file.readinto(view[got:])):
                got += step
            # What was read is held once: in the tensor, not in the page cache as well.
            os.posix_fadvise(file.fileno(), self.offset, self.nbytes, os.POSIX_FADV_DONTNEED)
        READS.add(weights=got)
        if got < self.nbytes:
            raise UserError(f"{self.path}: the tensor '{self.name}' is cut off; fetch the file again")
        value = raw.view(self.dtype).view(self.shape)
        if kept is not None:
            kept[self] = value
        return value


@contextmanager
def read_once() -> Iterator[None]:
    """Read what several tensors are made of, such as both halves of one, from the file once.

    It is held until the block ends; the tensors that `Entry.read` returns within it are not to be written to.
    """
    before = getattr(_THREAD, "kept", None)
    _THREAD.kept = {} if before is None else before
    try:
        yield
    finally:
        _THREAD.kept = before


def read_entries(folder: Path) -> dict[str, Entry]:
    """Return name -> entry of every tensor of a model folder: one file, or the shards that its index names.

    Raises:
        UserError: a file is absent, damaged or of another format.
    """
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            others = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind))
            named = f"; {others[0]} holds Python objects, which are never loaded" if others else ""
            raise UserError(
                f"{folder}: neither {SINGLE} nor {INDEX} is there{named}; weights are read from safetensors or GGUF"
            )
        return read_header(folder / SINGLE)
    record = read_json(index)
    placed = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise UserError(f"{index}: 'weight_map' (tensor name -> file name) is missing")
    shards, here = {}, {path.name for path in folder.iterdir()}
    for shard in sorted(set(placed.values())):
        path = folder / shard
        if shard not in here or not path.is_file():
            raise UserError(f"{folder}: the shard '{shard}' named in {INDEX} is missing")
        shards[shard] = read_header(path)
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise UserError(f"{folder / shard}: the tensor '{name}' is missing")
    return {name: shards[shard][name] for name, shard in placed.items()}


def read_header(path: Path) -> dict[str, Entry]:
    """Return name -> entry of a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes.

    Raises:
        UserError: the file is absent, not safetensors, or its tensors do not fill it without gap and overlap.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError(f"implausible header length in a file of {size} bytes")
            header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        header.pop("__metadata__", None)
        start = 8 + length
        entries = {name: _entry(path, name, value, start) for name, value in header.items()}
        _check_extent(path, entries, start, size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch the file again") from None
    return entries


def _entry(path: Path, name: str, value: Mapping[str, Any], start: int) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    kind = {**DTYPES, **CODES}.get(dtype)
    if kind is None:
        raise UserError(f"{path}: the tensor '{name}' has type {dtype}; known: {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise UserError(f"{path}: the tensor '{name}' has a shape or offsets that are no whole numbers from 0")
    if math.prod(shape) * kind.itemsize != end - begin:
        raise UserError(f"{path}: the tensor '{name}' of shape {shape} cannot take {end - begin} bytes")
    return Entry(path, name, kind, tuple(shape), start + begin, end - begin)


def _check_extent(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Raise UserError unless the tensors fill the file from `start` on: a shifted offset would read other weights."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != at:
            raise UserError(f"{path}: a gap or an overlap before the tensor '{name}'; fetch the file again")
        at += entry.nbytes
        if at > size:
            raise UserError(f"{path}: the tensor '{name}' is cut off at {size} bytes; fetch the file again")
    if at != size:
        raise UserError(f"{path}: {size - at} bytes after the last tensor; fetch the file again")

"""The headers of a model's files, wherever these are: how far they reach, and a folder that has nothing else.

The stand-in has files of the same names and lengths, empty but for their headers (a file system stores no zeros for
what was never written). All that reads headers reads it like the model; whoever reads a weight gets zeros.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Protocol

from lumoe.errors import UserError
from lumoe.moe.checkpoint.safetensors import LARGEST_HEADER
from lumoe.progress import track

_AT_ONCE = 8  # files that are asked for their headers at the same time
_FIRST_PIECE, _LARGEST_PIECE = 64 << 10, 4 << 20
_GGUF_STRING, _GGUF_ARRAY = 8, 9
_GGUF_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class Files(Protocol):
    """A model's files: in a folder, or where they would be fetched from.

    Attributes:
        where: for messages.
    """

    where: str

    def names(self) -> Sequence[str]:
        """Return all files' names."""
        ...

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        ...

    def read(self, name: str, begin: int, end: int | None = None) -> bytes:
        """Return the bytes from `begin` up to `end`, or fewer where the file ends before.

        Raises:
            UserError: it cannot be read.
        """
        ...


class LocalFiles:
    """Files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder

    def names(self) -> Sequence[str]:
        try:
            return sorted(path.name for path in self._folder.iterdir() if path.is_file())
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be read ({error.strerror})") from None

    def size(self, name: str) -> int:
        return (self._folder / name).stat().st_size

    def read(self, name: str, begin: int, end: int | None = None) -> bytes:
        try:
            with (self._folder / name).open("rb") as file:
                file.seek(begin)
                return file.read(-1 if end is None else max(end - begin, 0))
        except OSError as error:
            raise UserError(f"{self._folder / name}: cannot be read ({error.strerror})") from None


def copy_headers(files: Files, names: Sequence[str], folder: Path) -> bool:
    """Make `folder` stand in for the files `names`, and return whether every one of them is whole.

    A file that ends anywhere after its header is given the length that the header says.

    Raises:
        UserError: a file cannot be read, or a header is damaged.
    """

    def copy(name: str) -> bool:
        size = files.size(name)
        header, whole = (_gguf if name.endswith(".gguf") else _safetensors)(files, name, size)
        _write(folder / PurePosixPath(name).name, header, max(size, whole), f"{files.where}/{name}")
        return size >= whole

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return all(list(track(pool.map(copy, names), "headers read", len(names))))


def _write(path: Path, header: bytes, size: int, where: str) -> None:
    try:
        with path.open("wb") as file:
            file.write(header)
            os.ftruncate(file.fileno(), size)
    except (OSError, OverflowError) as error:
        raise UserError(f"{where}: no stand-in of {size} bytes can be made in {path.parent} ({error})") from None


def _safetensors(files: Files, name: str, size: int) -> tuple[bytes, int]:
    """Return a file's header, as it is, and the size that the file has by it."""
    start = files.read(name, 0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= min(LARGEST_HEADER, size - 8):
        return start, size  # whoever reads the stand-in says what is wrong
    header = start + files.read(name, 8, 8 + length)
    try:
        ends = [tensor["data_offsets"][1] for key, tensor in json.loads(header[8:]).items() if key != "__metadata__"]
        return header, 8 + length + max((end for end in ends if type(end) is int), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return header, size


class _Reader:
    """Reads a file from its beginning, in pieces that grow, no further than it is asked to."""

    def __init__(self, fetch: Callable[[int, int], bytes]) -> None:
        self._fetch, self.read, self.at = fetch, bytearray(), 0

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > LARGEST_HEADER:
            raise ValueError(f"a header of more than {LARGEST_HEADER} bytes")
        while len(self.read) < end:
            piece = max(min(len(self.read), _LARGEST_PIECE), _FIRST_PIECE, end - len(self.read))
            found = self._fetch(len(self.read), len(self.read) + piece)
            if not found:
                raise ValueError(f"the header is cut off at {len(self.read)} bytes")
            self.read += found
        taken = bytes(self.read[self.at : end])
        self.at = end
        return taken

    def number(self, kind: str) -> int:
        return int(struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))[0])

    def text(self) -> bytes:
        return self.take(self.number("Q"))


def _gguf(files: Files, name: str, size: int) -> tuple[bytes, int]:
    """Return a file's header, metadata and tensor list, and the size that the file has by them."""
    reader = _Reader(lambda begin, end: files.read(name, begin, min(end, size)))
    try:
        if reader.take(4) != b"GGUF" or reader.number("I") not in (2, 3):
            raise ValueError("it does not begin as one does")
        tensors, keys = reader.number("Q"), reader.number("Q")
        alignment = 32
        for _ in range(keys):
            key, kind = reader.text(), reader.number("I")
            if key == b"general.alignment" and kind == 4:
                alignment = reader.number("I")
            else:
                _skip(reader, kind)
        data = max((_tensor_end(reader) for _ in range(tensors)), default=0)
        start = -(-reader.at // alignment) * alignment
    except (ValueError, struct.error, ZeroDivisionError) as error:
        raise UserError(f"{files.where}/{name}: not a whole GGUF file ({error}); fetch the file again") from None
    return bytes(reader.read), start + data


def _skip(reader: _Reader, kind: int, depth: int = 0) -> None:
    if kind == _GGUF_STRING:
        reader.text()
    elif kind == _GGUF_ARRAY and depth < 4:
        inner, count = reader.number("I"), reader.number("Q")
        if inner in _GGUF_BYTES:
            reader.take(_GGUF_BYTES[inner] * count)
        else:
            for _ in range(count):
                _skip(reader, inner, depth + 1)
    elif kind in _GGUF_BYTES:
        reader.take(_GGUF_BYTES[kind])
    else:
        raise ValueError(f"a value of the unknown kind {kind}")


def _tensor_end(reader: _Reader) -> int:
    """Read one entry of the tensor list, and return where the tensor ends behind the header."""
    import gguf

    reader.text()
    count = math.prod(reader.number("Q") for _ in range(reader.number("I")))
    kind, offset = reader.number("I"), reader.number("Q")
    weights, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return offset + count // weights * nbytes

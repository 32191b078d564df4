"""Which weights a checkpoint holds, told from samples of them: cheap for a file of any size."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from lumoe.errors import UserError
from lumoe.moe.checkpoint.safetensors import Entry

_SAMPLE = 256  # bytes
# Of all samples so many are read at most: 4 MiB, or 64 MiB in pages of 4 KiB; seconds where none is in memory.
MOST_SAMPLES = 1 << 14


class _Sample(NamedTuple):
    path: Path
    offset: int
    nbytes: int


def identity(tensors: Iterable[tuple[str, tuple[int, ...], Sequence[Entry]]]) -> str:
    """Return a SHA-256, hexadecimal, over the names and shapes of a model's tensors and samples of their bytes.

    The first, middle and last 256 bytes of each tensor count, in the order of names. Of a model with more than
    `MOST_SAMPLES` such samples evenly spaced ones are taken: a third of them for 128 experts in each of 48 layers. A
    training step moves nearly all weights, so other weights of the same shape differ in the samples; a change of a
    few numbers elsewhere is not seen.

    The names are those of an architecture and the bytes are those of single matrices. Where files lie, how they are
    called, into how many shards they are cut and whether experts are stacked does not count, then. Matrices that are
    stored turned round, at another precision or in codes have other bytes, and so another identity. Settings in
    `config.json` do not count: none of them changes what was quantised.

    Args:
        tensors: name and shape of each tensor in the model, and where its bytes lie.

    Raises:
        UserError: a file cannot be read or ends too early.
    """
    total = hashlib.sha256()
    samples: list[_Sample] = []
    for name, shape, entries in sorted(tensors, key=lambda tensor: tensor[0]):
        total.update(f"{name} {shape}\n".encode())
        for entry in entries:
            samples += _samples(entry)
    count = min(len(samples), MOST_SAMPLES)
    chosen = [samples[index * len(samples) // count] for index in range(count)]
    read = _read({*chosen})
    for sample in chosen:
        total.update(read[sample])
    return total.hexdigest()


def _samples(entry: Entry) -> list[_Sample]:
    if entry.nbytes <= 3 * _SAMPLE:
        return [_Sample(entry.path, entry.offset, entry.nbytes)]
    last = entry.nbytes - _SAMPLE
    return [_Sample(entry.path, entry.offset + begin, _SAMPLE) for begin in (0, last // 2, last)]


def _read(samples: Iterable[_Sample]) -> dict[_Sample, bytes]:
    """Read samples in the order in which they lie, without what is around them."""
    found: dict[_Sample, bytes] = {}
    files: dict[Path, int] = {}
    with ExitStack() as opened:
        for sample in sorted(samples):
            try:
                if sample.path not in files:
                    files[sample.path] = opened.enter_context(sample.path.open("rb", buffering=0)).fileno()
                    os.posix_fadvise(files[sample.path], 0, 0, os.POSIX_FADV_RANDOM)
                found[sample] = os.pread(files[sample.path], sample.nbytes, sample.offset)
            except OSError as error:
                raise UserError(f"{sample.path}: cannot be read ({error.strerror})") from None
            if len(found[sample]) < sample.nbytes:
                raise UserError(f"{sample.path}: cut off at {sample.offset} bytes; fetch the file again")
    return found

"""How fast experts come from disk: by the size of an expert, the readers, and whether they share one expert's bytes.

    python benchmarks/reads.py --folder build --output build/reads.csv

`apart` lets each reader bring an expert of its own, `shared` lets all of them bring pieces of one expert. The file is
read past the page cache, as the engine reads them. Ways take turns, so a moment at which the disk is busy meets all of
them alike: compare the ratios, each to one reader in the same round.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from lumoe.files import write_csv
from lumoe.moe.offload.storage import BLOCK, DirectFile, PageBuffer, aligned

MB = 1_000_000
# Experts: Qwen3's and OLMoE's at 4 bits and at 16, Mixtral's at 4 and at 16.
SIZES = (3 * MB, 10 * MB, 99 * MB, 352 * MB)
# What one `preadv` is asked for when readers share an expert.
PIECE = 8 << 20
Way = Callable[[list[int], int], None]


@contextmanager
def disk_file(folder: Path, nbytes: int) -> Iterator[DirectFile]:
    """A file of random bytes, gone afterwards."""
    path = folder / "reads.bin"
    block = np.random.default_rng(0).bytes(64 << 20)
    try:
        with path.open("wb") as file:
            for begin in range(0, nbytes, len(block)):
                file.write(block[: nbytes - begin])
            os.fsync(file.fileno())
        yield DirectFile(path)
    finally:
        path.unlink(missing_ok=True)


def ways(file: DirectFile, readers: tuple[int, ...], buffers: list[PageBuffer]) -> dict[tuple[str, int], Way]:
    """Return the ways to read; each is called with the experts' offsets and their size."""
    made: dict[tuple[str, int], Way] = {}

    def piece(buffer: PageBuffer, begin: int, end: int, offset: int) -> None:
        file.read_into(buffer.view[begin:end], offset + begin)

    for count in readers:
        pool = ThreadPoolExecutor(count)

        def apart(offsets: list[int], size: int, pool: ThreadPoolExecutor = pool) -> None:
            free = list(buffers)

            def one(offset: int) -> None:
                buffer = free.pop()
                piece(buffer, 0, size, offset)
                free.append(buffer)

            list(pool.map(one, offsets))

        def shared(offsets: list[int], size: int, pool: ThreadPoolExecutor = pool, count: int = count) -> None:
            step = min(PIECE, aligned(-(-size // count)))
            for offset in offsets:
                begins = range(0, size, step)
                list(pool.map(lambda at, to=offset: piece(buffers[0], at, min(at + step, size), to), begins))

        made["apart", count] = apart
        if count > 1:
            made["shared", count] = shared
    return made


def measure(file: DirectFile, nbytes: int, options: argparse.Namespace) -> pd.DataFrame:
    """Return one row per round, size and way: bytes per second, and the ratio to one reader in the same round."""
    generator, rows = np.random.default_rng(1), []
    for size in map(aligned, options.size or SIZES):
        buffers = [PageBuffer(size) for _ in range(max(options.readers))]
        made = ways(file, tuple(options.readers), buffers)
        count = max(options.bytes // size, max(options.readers))
        for round_ in range(-1, options.rounds):  # the first touches the buffers
            rates = {}
            for index in generator.permutation(len(made)).tolist():
                way = list(made)[index]
                offsets = (generator.integers(0, (nbytes - size) // BLOCK, count) * BLOCK).tolist()
                began = time.perf_counter()
                made[way](offsets, size)
                rates[way] = count * size / (time.perf_counter() - began)
            rows += [
                {"expert_bytes": size, "round": round_, "way": way, "readers": readers, "bytes_per_s": rate,
                 "ratio": rate / rates["apart", 1]}
                for (way, readers), rate in rates.items() if round_ >= 0
            ]  # fmt: skip
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk that is to be read")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--file-bytes", type=int, default=4_000 * MB)
    parser.add_argument("--bytes", type=int, default=400 * MB, help="read in each round by each way")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--readers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--size", type=int, action="append", help="bytes of an expert; repeat for several")
    options = parser.parse_args()
    options.readers = sorted({1, *options.readers})
    options.folder.mkdir(parents=True, exist_ok=True)
    with disk_file(options.folder, options.file_bytes) as file:
        table = measure(file, options.file_bytes, options)
    if options.output:
        write_csv(options.output, table)
    found = table.groupby(["expert_bytes", "way", "readers"])[["bytes_per_s", "ratio"]].median()
    for (size, way, readers), (rate, ratio) in found.iterrows():
        print(f"{size / MB:6.1f} MB  {way:6}  {readers} readers  {rate / 1e9:5.2f} GB/s  {ratio:5.2f}")


if __name__ == "__main__":
    main()

"""Products with weights of few bits beside their two floors: bytes over bandwidth, multiply-adds over the peak rate.

    python benchmarks/kernels.py --output results/benchmarks/kernels.csv
    LUMOE_NATIVE=avx2 python benchmarks/kernels.py --output results/benchmarks/kernels-avx2.csv

An expert computes one layer's tokens; experts take turns, so many of them that no cache holds one until its next turn.
Bandwidth is that of a bare read, the rate that of torch's float32 product of large matrices, both measured in each
round, between the kernels: a machine's mood meets all alike. Times are medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from lumoe.files import write_csv
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.kernels.codes import FORMATS, CodedExpert
from lumoe.moe.kernels.native import BandedExpert, expert_tensors
from lumoe.moe.measurement.profile import describe_device

SHAPES = {"mixtral": (4096, 14336), "qwen3-30b-a3b": (2048, 768), "olmoe": (2048, 1024)}
COLUMNS = (
    "shape", "kernel", "tokens", "ms", "weights_mb", "gb_per_s", "bandwidth_gb_per_s", "gmac_per_s",
    "float32_gmac_per_s", "over_floor", "threads", "instructions", "device", "basis",
)  # fmt: skip
# Bytes that all experts of a kind take together: several times a processor's last cache.
CYCLE_BYTES = 400 << 20
Expert = Callable[[torch.Tensor], torch.Tensor]


def affine(bits: int) -> Callable[[int, int, torch.Generator], tuple[Expert, int]]:
    """This package's own format: a scale and a zero for 64 weights."""

    def make(hidden: int, wide: int, draw: torch.Generator) -> tuple[Expert, int]:
        shapes = (wide, hidden), (hidden, wide), (wide, hidden)
        matrices = (nearest(torch.randn(shape, generator=draw).mul_(0.02).bfloat16(), bits, 64) for shape in shapes)
        tensors = expert_tensors(*matrices)
        return BandedExpert(tensors, bits), sum(tensor.nbytes for tensor in tensors.values())

    return make


def coded(kind: str) -> Callable[[int, int, torch.Generator], tuple[Expert, int] | None]:
    """A format of llama.cpp's files; None where its blocks do not fit the widths."""

    def make(hidden: int, wide: int, draw: torch.Generator) -> tuple[Expert, int] | None:
        form = FORMATS[kind]
        if hidden % form.weights or wide % form.weights:
            return None
        tensors = {}
        for name, (rows, inputs) in {"w1": (wide, hidden), "w2": (hidden, wide), "w3": (wide, hidden)}.items():
            # Any bytes do: a kernel's time does not depend on them, as long as scales are small numbers.
            blocks = torch.randint(0, 256, (rows, inputs // form.weights, form.nbytes), generator=draw).byte()
            scale = torch.tensor([0.001], dtype=torch.float16).view(torch.uint8)
            blocks[..., :2] = scale
            blocks[..., -2:] = scale
            if kind == "MXFP4":
                blocks[..., 0] = 118
            tensors[name] = blocks.view(rows, -1)
        return CodedExpert(tensors, dict.fromkeys(tensors, kind)), sum(tensor.nbytes for tensor in tensors.values())

    return make


KERNELS = {**{f"int{bits}": affine(bits) for bits in (4, 8, 3, 2)}, **{kind: coded(kind) for kind in FORMATS}}


class Turn:
    """Experts of one kind that take turns."""

    def __init__(self, name: str, hidden: int, wide: int) -> None:
        draw = torch.Generator().manual_seed(0)
        first = KERNELS[name](hidden, wide, draw)
        self.experts: list[Expert] = []
        if first is None:
            return
        self.nbytes = first[1]
        self.experts = [first[0]]
        for _ in range(max(CYCLE_BYTES // self.nbytes, 1)):
            made = KERNELS[name](hidden, wide, draw)
            assert made is not None
            self.experts.append(made[0])
        self.next = 0

    def seconds(self, hidden: torch.Tensor, least_s: float) -> float:
        """Seconds of one expert, the mean over `least_s` or one turn of all."""
        began, done = time.perf_counter(), 0
        while done < len(self.experts) and (done == 0 or time.perf_counter() - began < least_s):
            self.experts[self.next](hidden)
            self.next = (self.next + 1) % len(self.experts)
            done += 1
        return (time.perf_counter() - began) / done


def read_gb_per_s(memory: torch.Tensor) -> float:
    """Bytes that all threads read a second, when nothing else is done."""
    began = time.perf_counter()
    memory.sum()
    return memory.nbytes / (time.perf_counter() - began) / 1e9


def float32_gmac_per_s(square: torch.Tensor) -> float:
    """Multiply-adds a second of torch's float32 product."""
    began = time.perf_counter()
    square @ square
    return len(square) ** 3 / (time.perf_counter() - began) / 1e9


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Return COLUMNS, one row for each shape, kernel and number of tokens."""
    memory = torch.zeros(CYCLE_BYTES // 4, dtype=torch.float32)
    square = torch.randn(1024, 1024)
    device = describe_device().rsplit(",", 1)[0]
    found = []
    for shape in options.shape:
        hidden, wide = SHAPES[shape]
        for name in options.kernel:
            turn = Turn(name, hidden, wide)
            if not turn.experts:
                continue
            for tokens in options.tokens:
                values = torch.randn(tokens, hidden).bfloat16()
                times, reads, rates = [], [], []
                for repeat in range(options.repeats + 1):
                    seconds, read, rate = turn.seconds(values, 0.3), read_gb_per_s(memory), float32_gmac_per_s(square)
                    if repeat:  # the first warms up
                        times.append(seconds)
                        reads.append(read)
                        rates.append(rate)
                seconds, read, rate = (statistics.median(each) for each in (times, reads, rates))
                macs = 3 * hidden * wide * tokens / 1e9
                floor = max(turn.nbytes / 1e9 / read, macs / rate)
                row = (
                    shape, name, tokens, 1e3 * seconds, turn.nbytes / 1e6, turn.nbytes / seconds / 1e9, read,
                    macs / seconds, rate, seconds / floor, torch.get_num_threads(),
                    os.environ.get("LUMOE_NATIVE") or "all", device, "measured",
                )  # fmt: skip
                print(
                    f"{shape:14} {name:7} {tokens:4} tokens {row[3]:8.3f} ms  {row[5]:6.1f} of {read:5.1f} GB/s  "
                    f"{row[7]:6.1f} of {rate:5.1f} GMAC/s  {row[9]:5.2f} of the floor",
                    flush=True,
                )
                found.append(row)
            del turn
    return pd.DataFrame(found, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the table")
    parser.add_argument("--shape", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--kernel", nargs="*", choices=list(KERNELS), default=["int4", "Q4_0", "Q8_0", "Q4_K", "MXFP4"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 4, 16, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    write_csv(options.output, measure(options), COLUMNS)


if __name__ == "__main__":
    main()

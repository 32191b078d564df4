"""Decode and prefill at Mixtral's true width against transformers, accelerate and llama.cpp, in one run.

    python benchmarks/true_width.py --folder build/true-width --output results/benchmarks/true_width.csv

Each contender is a process of its own, so that none inherits another's memory. Those of a heat are loaded together and
take turns, round after round: a machine's mood meets all of them alike, and ratios are of medians over rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path

import pandas as pd
from lines import Process
from true_width_contenders import CONTENDERS, HEATS, answer
from true_width_model import build

from lumoe.files import write_csv

COLUMNS = (
    "heat",
    "contender",
    "task",
    "seconds",
    "seconds_min",
    "seconds_max",
    "times_of_reference",
    "repeats",
    "threads",
    "device",
    "basis",
)


class Contender(Process):
    """A process that has loaded a model and times one task when it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__([sys.executable, *sys.argv, "--run", name])
        self.ready = self.greeting == "ready"

    def seconds(self, task: str) -> list[float]:
        """Return the seconds of each repetition of `task`."""
        return list(json.loads(self.ask(task)))


def run_heat(names: list[str], tasks: list[str], arguments: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Load the contenders `names`, let them take turns at every task, return (name, task) -> seconds."""
    running = []
    for name in names:
        contender = Contender(name)
        if contender.ready:
            running.append(contender)
        else:
            print(f"{name}: not run, see above", file=sys.stderr, flush=True)
            contender.close()
    found: dict[tuple[str, str], list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for task in tasks:
            for contender in running:
                times = contender.seconds(task)
                if repeat:  # the first round warms up
                    found.setdefault((contender.name, task), []).extend(times)
    for contender in running:
        contender.close()
    return found


def compare(arguments: argparse.Namespace) -> pd.DataFrame:
    """Run every heat; times of a heat are also given as multiples of those of its first contender."""
    from lumoe.moe.measurement.profile import describe_device

    device = describe_device().rsplit(",", 1)[0]
    tasks = ["decode", *(f"prefill {size}" for size in arguments.prefill)]
    rows = []
    for heat, names in HEATS.items():
        if arguments.heat and heat not in arguments.heat:
            continue
        found = run_heat(list(names), tasks, arguments)
        for (name, task), times in found.items():
            middle = statistics.median(times)
            reference = statistics.median(found.get((names[0], task), times))
            print(
                f"{heat:10} {name:44} {task:12} {middle:8.4f} s  ({min(times):.4f} .. {max(times):.4f})"
                f"  {middle / reference:6.2f}",
                flush=True,
            )
            spread = (middle, min(times), max(times), middle / reference, len(times))
            rows.append((heat, name, task, *spread, arguments.threads, device, "measured"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is made (9 GB)")
    parser.add_argument("--output", type=Path, required=True, help="the table")
    parser.add_argument(
        "--gguf", type=Path, help="the model as `benchmarks/gguf_mixtral.py` converts it, for llama.cpp"
    )
    parser.add_argument("--heat", nargs="*", choices=list(HEATS), help="heats to run; all by default")
    parser.add_argument("--prefill", type=int, nargs="*", default=[16, 256], help="tokens of the timed prefills")
    parser.add_argument("--repeats", type=int, default=3, help="rounds that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        answer(arguments)
        return
    build(arguments.folder)
    write_csv(arguments.output, compare(arguments), COLUMNS)


if __name__ == "__main__":
    main()

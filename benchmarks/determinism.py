"""Run the pipeline in two clean clones on different numbers of cores and threads, and compare all that came out.

    python benchmarks/determinism.py --folder build/determinism

Tables and figures that are computed or simulated must agree byte for byte. The first run has one core, one thread and,
per process, 2 GiB of memory that it may allocate; the second has all cores.

Measured ones are held to a test. Throughput is measured again in both clones under the same conditions, `--rounds`
times in turn; each round gives one number, the median over all configurations of the logarithm of the ratio of tokens
per second. The clones count as equal if the Wilcoxon signed-rank test of these numbers has a p-value above 0.01.
Pairs of configurations within one round are no repetitions: a machine that is slower for a minute is so for all.
`--seconds` bounds one call: the next goes on.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from killed_pipeline import finish
from pipeline_runs import clone, compared, differences, parse
from scipy.stats import wilcoxon

from lumoe.files import read_csv

THROUGHPUT = "results/moe/mini-mixtral/throughput.csv"
RULE = "measure_throughput"
KEYS = ["quantized_experts", "resident_experts", "budget_bytes"]
LIMIT_BYTES = 2 << 30


def main() -> None:
    options = parsed()
    end = time.monotonic() + options.seconds
    runs = [options.folder / "one-core", options.folder / "all-cores"]
    for run, cores in zip(runs, (1, os.cpu_count() or 1), strict=True):
        clone(run)
        done = run.with_suffix(".done")
        if done.exists():
            continue
        os.environ |= {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores), "TZ": f"<+0{cores}>-{cores}"}
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES if cores == 1 else -1, -1))
        if finish(run, [f"--cores={cores}", *options.arguments], end) is None:
            sys.exit(f"{run.name} is not done; call again")
        done.touch()
    found = list(differences(runs[0], runs[1], options.base))
    print(f"{compared(runs[0], options.base)} files compared, {len(found)} differ")
    print("\n".join(found))
    if all((run / options.base / THROUGHPUT).is_file() for run in runs):
        print(measured(runs, options, end))
    sys.exit(int(bool(found)))


def measured(runs: Sequence[Path], options: argparse.Namespace, end: float) -> str:
    """Time both clones in turn and return the test in words."""
    again = [f"--cores={os.cpu_count()}", *options.arguments, "--forcerun", RULE, "--until", RULE]
    ratios = []
    for number in range(options.rounds):
        # Who comes first changes from round to round, so that a drift meets both.
        for run in runs if number % 2 else reversed(runs):
            if finish(run, again, end) is None:
                sys.exit("throughput is not measured; call again with more --seconds")
        one, other = (read_csv(run / options.base / THROUGHPUT).set_index(KEYS)["tokens_per_s"] for run in runs)
        ratios.append(float(np.log(other / one).median()))
    p = float(wilcoxon(ratios).pvalue)
    verdict = "equal" if p > 0.01 else "not equal"
    spread = ", ".join(f"{np.exp(ratio):.3f}" for ratio in ratios)
    return f"throughput, {len(ratios)} rounds: ratios {spread}; p = {p:.3f}: {verdict}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/determinism"))
    parser.add_argument("--rounds", type=int, default=8, help="of timing; fewer than 8 can never give p below 0.01")
    return parse(parser)


if __name__ == "__main__":
    main()

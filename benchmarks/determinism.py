"""Run the pipeline in two clean clones on different numbers of cores and threads, and compare all that came out.

    python benchmarks/determinism.py --folder build/determinism

Tables and figures that are computed or simulated must agree byte for byte. Measured ones are held to a test: over the
configurations that both runs timed, a Wilcoxon signed-rank test of the logarithms of the ratios of tokens per second;
the runs count as equal if its p-value is above 0.01. The first run has one core, one thread and, per process, 2 GiB of
memory that it may allocate; the second has all cores. `--seconds` bounds one call: the next goes on.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from pathlib import Path

import numpy as np
from killed_pipeline import finish
from pipeline_runs import clone, compared, differences, parse
from scipy.stats import wilcoxon

from lumoe.files import read_csv

THROUGHPUT = "results/moe/mini-mixtral/throughput.csv"
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
    found = list(differences(*runs, options.base))
    print(f"{compared(runs[0], options.base)} files compared, {len(found)} differ")
    print("\n".join(found))
    if all((run / options.base / THROUGHPUT).is_file() for run in runs):
        print(measured(*(run / options.base / THROUGHPUT for run in runs)))
    sys.exit(int(bool(found)))


def measured(one: Path, other: Path) -> str:
    """Return the test of two tables of throughput in words."""
    keys = ["quantized_experts", "resident_experts", "budget_bytes"]
    both = read_csv(one).merge(read_csv(other), on=keys, suffixes=("", "_other"))
    ratios = np.log(both["tokens_per_s_other"] / both["tokens_per_s"])
    p = float(wilcoxon(ratios).pvalue)
    verdict = "equal" if p > 0.01 else "not equal"
    return f"throughput: {len(ratios)} pairs, median ratio {np.exp(np.median(ratios)):.3f}, p = {p:.3f}: {verdict}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/determinism"))
    return parse(parser)


if __name__ == "__main__":
    main()

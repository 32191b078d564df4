"""Runs of the pipeline in clones of this checkout, and what of their results must agree byte for byte."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path

from lumoe.files import read_csv

ROOT = Path(__file__).parents[1]
# What depends on the speed of the machine: timed, or predicted from a timed profile.
MEASURED = (
    "results/moe/*/machine.json",
    "results/moe/*/throughput.csv",
    "results/moe/*/batching.csv",
    "results/moe/*/adaptation*.csv",
    "results/moe/mini-mixtral/configurations.csv",
    "results/moe/mini-mixtral/pareto.csv",
    "results/moe/mini-mixtral/sweep.csv",
    "results/claims.*",
    "results/provenance.csv",
    "figures/measured/*",
    # The experts' files note how long each took; what was made of them is in the tables.
    "*.safetensors",
)
# Columns of tables that are otherwise the same.
TIMED_COLUMNS = {"experts.csv": ["seconds"], "quantizers.csv": ["seconds"]}


def clone(folder: Path) -> None:
    """Clone the commit that is checked out here, unless `folder` is there."""
    if not folder.is_dir():
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", str(ROOT), str(folder)], check=True)


def start(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start `snakemake ARGUMENTS` in a clone, as the leader of a process group; its output goes to `run.log`."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with (folder.parent / f"{folder.name}.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "snakemake", *arguments],
            cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip


def resume(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Run the documented command after a crash: `snakemake --unlock`, then the same command again."""
    unlocked = start(folder, ["--unlock", *[word for word in arguments if not word.startswith("--cores")]]).wait()
    if unlocked:
        raise RuntimeError(f"{folder}: --unlock failed; see {folder.name}.log")
    return start(folder, arguments)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a run and everything that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def wait(process: subprocess.Popen[bytes], until: float) -> int | None:
    """Wait for a run until a moment of `time.monotonic()`; return its exit code, None if it still runs."""
    while time.monotonic() < until:
        if (code := process.poll()) is not None:
            return code
        time.sleep(0.05)
    return process.poll()


def produced(folder: Path, base: str) -> dict[str, Path]:
    """Return name -> path of every result and figure below `folder / base`."""
    top = folder / base
    files = [path for part in ("results", "figures") for path in (top / part).rglob("*") if path.is_file()]
    return {path.relative_to(top).as_posix(): path for path in sorted(files)}


def differences(one: Path, other: Path, base: str = "") -> Iterator[str]:
    """Yield a line for each file that is in one run only, or differs and is not measured."""
    first, second = produced(one, base), produced(other, base)
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            yield f"{name}: only in {one if name in first else other}"
        elif any(fnmatch(name, pattern) for pattern in MEASURED):
            continue
        elif timed := TIMED_COLUMNS.get(Path(name).name):
            if not read_csv(first[name]).drop(columns=timed).equals(read_csv(second[name]).drop(columns=timed)):
                yield f"{name}: differs"
        elif first[name].read_bytes() != second[name].read_bytes():
            yield f"{name}: differs"


def compared(folder: Path, base: str = "") -> int:
    """Return how many files `differences` holds against each other."""
    return sum(not any(fnmatch(name, pattern) for pattern in MEASURED) for name in produced(folder, base))


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add what every benchmark of runs has in common to `parser`, parse, and make the folder of the clones."""
    parser.add_argument("--seconds", type=float, default=3600.0, help="of this call, about")
    parser.add_argument("--base", default="build/smoke", help="where the configuration puts results and figures")
    parser.add_argument(
        "arguments", nargs="*", default=["--configfile", "config/smoke.yaml"], help="further arguments of snakemake"
    )
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.folder = options.folder.resolve()
    return options

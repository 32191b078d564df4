"""Kill the pipeline at random moments, resume it each time, and hold its results against an undisturbed run.

    python benchmarks/killed_pipeline.py --folder build/kills --kills 20

Snakemake alone, one running rule, or both with all their children are killed with SIGKILL. Each time the documented
command (`snakemake --unlock`, then the same command) goes on; when all results are there and kills are left, they are
deleted and it starts over. `--seconds` bounds one call: the next call goes on where this one stopped.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
from pipeline_runs import clone, compared, differences, kill_group, parse, resume, start, wait

from lumoe.files import read_csv, write_csv

VICTIMS = ("snakemake", "rule", "all")


def main() -> None:
    options = parsed()
    end = time.monotonic() + options.seconds
    undisturbed, killed = options.folder / "undisturbed", options.folder / "killed"
    arguments = [f"--cores={options.cores}", *options.arguments]
    for folder in (undisturbed, killed):
        clone(folder)
    if not (options.folder / "undisturbed.done").exists():
        if finish(undisturbed, arguments, end) is None:
            sys.exit("the undisturbed run is not done; call again")
        (options.folder / "undisturbed.done").touch()
    table = options.folder / "kills.csv"
    while (done := len(read_csv(table)) if table.is_file() else 0) < options.kills:
        if time.monotonic() + options.longest > end:
            sys.exit(f"{done} of {options.kills} kills; call again")
        one_kill(killed, arguments, table, random.Random(f"{options.seed} {done}"), options.longest, options.base)
    if finish(killed, arguments, end) is None:
        sys.exit("all kills are done, the last run is not; call again")
    found = list(differences(undisturbed, killed, options.base))
    empty = [path for path in (killed / options.base).rglob("*.[cjs]*") if path.is_file() and path.stat().st_size == 0]
    kills = read_csv(table)
    print(f"{len(kills)} kills ({', '.join(f'{n} {v}' for v, n in kills['victim'].value_counts().items())})")
    print(f"{compared(killed, options.base)} files compared, {len(found)} differ, {len(empty)} empty")
    print("\n".join(found))
    sys.exit(int(bool(found or empty)))


def one_kill(folder: Path, arguments: list[str], table: Path, choose: random.Random, longest: float, base: str) -> None:
    """Resume the run, kill a part of it at a random moment, and note it; results that were all there are deleted."""
    process = resume(folder, arguments)
    began = time.monotonic()
    code = wait(process, began + choose.uniform(1.0, longest))
    if code is not None:
        if code != 0:
            raise RuntimeError(f"a resumed run failed with {code}; see {folder.name}.log")
        for part in ("results", "figures", ".snakemake"):
            shutil.rmtree(folder / base / part, ignore_errors=True)
        return
    victim = choose.choice(VICTIMS)
    rules = [child for child in psutil.Process(process.pid).children(recursive=True) if "lumoe" in child.name()]
    if victim == "rule" and not rules:
        victim = "snakemake"
    if victim == "rule":
        rule = choose.choice(rules)
        name = " ".join(rule.cmdline()[2:5])
        rule.kill()
        # Snakemake sees the failure, lets other jobs end and gives up; a user would then start it again.
        code = wait(process, time.monotonic() + 120)
        assert code not in (None, 0), "the death of a rule was not noticed"
    elif victim == "snakemake":
        name = f"{len(rules)} rules left running"
        process.send_signal(signal.SIGKILL)
        process.wait()
    else:
        name = f"{len(rules)} rules"
        kill_group(process)
    row = {"seconds": round(time.monotonic() - began, 2), "victim": victim, "what": name.replace(",", ";")}
    rows = [*(read_csv(table).to_dict("records") if table.is_file() else []), row]
    write_csv(table, pd.DataFrame(rows))
    print(row, flush=True)


def finish(folder: Path, arguments: list[str], end: float) -> bool | None:
    """Run to the end; None if the time was up first."""
    process = resume(folder, arguments) if (folder / ".snakemake").is_dir() else start(folder, arguments)
    try:
        code = wait(process, end)
    finally:
        kill_group(process)
    if code is None:
        return None
    if code:
        log = (folder.parent / f"{folder.name}.log").read_text(encoding="utf-8", errors="replace")
        raise subprocess.CalledProcessError(code, "snakemake", log[-3000:])
    return True


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/kills"), help="where clones and the record go")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--longest", type=float, default=40.0, help="seconds before a kill, at most")
    return parse(parser)


if __name__ == "__main__":
    main()

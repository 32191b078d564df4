"""Findings about this machine: each names what was looked at, what was found and what follows for the user."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Set
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from lumoe import compiled, machine
from lumoe.errors import UserError
from lumoe.resources import data_path

State = Literal["ok", "limited", "missing"]
GB = 1e9
# What the README asks for; the published run was made with less.
MEMORY_BYTES = 8 * 2**30
DISK_BYTES = 6 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at; `needed` says whether the default pipeline cannot do without it."""

    what: str
    state: State
    found: str
    means: str
    needed: bool = True


def examine(folder: Path) -> list[Finding]:
    """Look at this machine and at `folder`, where results would go; nothing is written.

    Raises:
        UserError: `folder` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give --folder one that exists")
    return [
        python(sys.version_info[:2]),
        packages(),
        cores(machine.usable_cores()),
        memory(machine.memory_bytes()),
        disk(machine.disk_free_bytes(folder)),
        kernels(compiled.compiler(), machine.cpu_flags()),
        gpu(machine.gpus()),
        model(),
        program("slurm", "sbatch", "snakemake --workflow-profile profiles/slurm spreads the jobs over a cluster"),
        program("conda", "conda", "snakemake --sdm conda builds an environment per rule"),
    ]


def python(running: tuple[int, int]) -> Finding:
    """Judge the interpreter's version (major, minor)."""
    found = ".".join(map(str, running))
    if running == (3, 11):
        return Finding("Python", "ok", found, "as in requirements.lock")
    if running > (3, 11):
        return Finding("Python", "limited", found, "requirements.lock is resolved for 3.11: versions may differ")
    return Finding("Python", "missing", found, "install Python 3.11")


def packages() -> Finding:
    """Hold the installed packages against what this package asks for; extras are left out."""
    wrong = []
    for line in requires("lumoe") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is not installed")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} is not {requirement.specifier}")
    if wrong:
        return Finding("packages", "missing", "; ".join(wrong), "run `make .venv/.ready` or pip install .")
    return Finding("packages", "ok", f"torch {version('torch')}, snakemake {version('snakemake')}", "all that is asked")


def cores(count: int) -> Finding:
    """Judge the number of usable cores."""
    found = f"{count}, {machine.cpu_name()}"
    if count >= 2:
        return Finding("cores", "ok", found, "jobs run side by side; timed ones alone")
    return Finding("cores", "limited", found, "everything runs, one job after another")


def memory(size: int) -> Finding:
    """Judge the usable memory in bytes."""
    if size >= MEMORY_BYTES:
        return Finding("memory", "ok", f"{size / GB:.1f} GB", "enough for the default pipeline")
    means = f"the default pipeline wants {MEMORY_BYTES / GB:.1f} GB: run one job at a time (--cores 1)"
    return Finding("memory", "limited", f"{size / GB:.1f} GB", means)


def disk(free: int) -> Finding:
    """Judge the free space in bytes where results go."""
    if free >= DISK_BYTES:
        return Finding("free disk", "ok", f"{free / GB:.1f} GB", "enough for the environment and all results")
    means = f"set-up and results want {DISK_BYTES / GB:.1f} GB: free some, or choose another --folder"
    return Finding("free disk", "missing", f"{free / GB:.1f} GB", means)


def kernels(compiler: str | None, flags: Set[str]) -> Finding:
    """Judge whether the package's own kernels can be compiled here and run."""
    instead = "torch's kernels stand in: 4-bit experts decode at about half the speed"
    if "avx2" not in flags:
        return Finding("kernels", "limited", "a processor without AVX2", instead, needed=False)
    if compiler is None:
        return Finding("kernels", "limited", "no C++ compiler", f"{instead}; install g++", needed=False)
    return Finding("kernels", "ok", compiler, "compiled once, at first use", needed=False)


def gpu(found: list[machine.Gpu]) -> Finding:
    """Judge the GPUs: whether the fast tier can be one, and whether Mixtral 8x7B fits at its smallest budget."""
    if not found:
        means = (
            "the fast tier is memory under the budget, the slow tier the checkpoint on disk; Mixtral claims: not-run"
        )
        return Finding("GPU", "limited", "none", means, needed=False)
    names = ", ".join(f"{card.name} ({card.memory_bytes / GB:.0f} GB)" for card in found)
    least = mixtral_least_bytes()
    if max(card.memory_bytes for card in found) >= least:
        means = "config/mixtral-8x7b.yaml runs at the budgets that fit, given the weights"
        return Finding("GPU", "ok", names, means, needed=False)
    means = f"Mixtral 8x7B's smallest budget is {least / GB:.1f} GB: smaller models only"
    return Finding("GPU", "limited", names, means, needed=False)


def mixtral_least_bytes() -> int:
    """Return the smallest fast-tier budget, in bytes, that the settings sweep for Mixtral 8x7B."""
    from lumoe.moe.architectures.read import read_shape
    from lumoe.moe.planning.budget import parse_budget
    from lumoe.pipeline.settings import Placement

    shape = read_shape(data_path("shapes", "mixtral-8x7b.yaml"))
    return min(parse_budget(text, shape.bytes_full) for text in Placement().budgets["mixtral-8x7b"])


def model() -> Finding:
    """Look for the shipped model, which lies in the checkout and not in the wheel."""
    folder = data_path("models", "mini-mixtral")
    if (folder / "config.json").is_file() and list(folder.glob("*.safetensors")):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return Finding("shipped model", "ok", f"mini-mixtral, {size / 1e6:.1f} MB", "nothing needs a download")
    means = "work in a checkout, or train it: snakemake --config 'model={source: trained}'"
    return Finding("shipped model", "limited", "mini-mixtral is not here", means, needed=False)


def program(what: str, name: str, means: str) -> Finding:
    """Look for a program that only some ways of running need."""
    path = shutil.which(name)
    if path:
        return Finding(what, "ok", path, means, needed=False)
    return Finding(what, "limited", f"no `{name}`", f"not needed here; with it, {means}", needed=False)

"""Write requirements.lock and the conda mirror from the packages installed beside this interpreter.

Local version labels (``+cpu``) are dropped: the lock names releases, and each machine's installer picks the build.
"""

from __future__ import annotations

import argparse
import re
from importlib.metadata import distributions
from pathlib import Path

SKIP = {"pip", "wheel", "lumoe"}
# What a CUDA build of torch brings along is that build's business, not the lock's.
SKIP_PREFIXES = ("nvidia-", "cuda-", "triton")


def pins() -> list[str]:
    """Return ``name==version`` of every installed distribution, sorted."""
    found = {}
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
        if name not in SKIP and not name.startswith(SKIP_PREFIXES):
            found[name] = distribution.version.split("+")[0]
    return [f"{name}=={found[name]}" for name in sorted(found)]


def conda_environment(pinned: list[str]) -> str:
    """Return the conda environment that installs the same releases with pip."""
    lines = ["# Made from requirements.lock by `make lock`.", "name: lumoe", "channels:", "  - conda-forge"]
    lines += ["dependencies:", "  - python=3.11", "  - pip", "  - pip:"]
    lines += [f"      - {pin}" for pin in pinned]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("requirements.lock"))
    parser.add_argument("--conda", type=Path, default=Path("envs/lumoe.yaml"))
    arguments = parser.parse_args()
    pinned = pins()
    head = "# Every package, resolved from envs/runtime.in and envs/dev.in by `make lock`. Python 3.11.\n"
    arguments.output.write_text(head + "\n".join(pinned) + "\n", encoding="utf-8")
    arguments.conda.write_text(conda_environment(pinned), encoding="utf-8")


if __name__ == "__main__":
    main()

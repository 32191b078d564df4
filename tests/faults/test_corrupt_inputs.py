"""Damaged files: an error that names the file, or the right result; never a crash, a hang, or much more memory.

`LUMOE_FUZZ_CASES` is the number of damaged files in all (docs/reliability.md); seeds are fixed.
"""

from __future__ import annotations

import os
import struct
import time
import warnings
from pathlib import Path
from random import Random

import pandas as pd
import pytest
from artifacts import ARTIFACTS, Artifact
from mutations import mutate

from lumoe.errors import UserError

CASES = -(-int(os.environ.get("LUMOE_FUZZ_CASES", "360")) // len(ARTIFACTS))
SECONDS = 10.0
# What reading may take beyond twice what reading the whole file takes, for the allocator's sake.
SLACK_BYTES = 96 << 20


def peak_bytes() -> int:
    """Most memory since `reset_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def reset_peak() -> int:
    """Forget the peak; return the memory held now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return peak_bytes()


def same(one: object, other: object) -> bool:
    if isinstance(one, pd.DataFrame) and isinstance(other, pd.DataFrame):
        return one.equals(other)
    return bool(one == other)


@pytest.mark.parametrize("artifact", ARTIFACTS, ids=lambda artifact: artifact.name)
def test_a_damaged_file_is_named_or_read_right(artifact: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    artifact.make(folder)
    expected = artifact.read(folder)
    held = reset_peak()
    artifact.read(folder)
    allowed = held + 2 * (peak_bytes() - held) + SLACK_BYTES
    files = sorted(path for path in folder.rglob(artifact.files) if path.is_file())
    assert files
    refused = equal = other = 0
    reset_peak()
    for number in range(CASES):
        random = Random(f"{artifact.name} {number}")  # noqa: S311 - damage, not secrets
        path = random.choice(files)
        whole = path.read_bytes()
        head = 8 + struct.unpack("<Q", whole[:8])[0] if artifact.header else len(whole)
        damaged = mutate(whole[:head], random, path.suffix in (".json", ".jsonl", ".yaml", ".csv"))
        path.write_bytes(damaged + whole[head:])
        began = time.monotonic()
        where = f"case {number} of {path.name}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = artifact.read(folder)
        except UserError as error:
            refused += 1
            message = str(error)
            if str(folder) not in message or "\n" in message or len(message) > 2000:
                pytest.fail(f"{where}: not one sentence that names the file: {message[:3000]}")
        except Exception as error:
            pytest.fail(f"{where}: {type(error).__name__}: {error}")
        else:
            if same(found, expected):
                equal += 1
            else:
                other += 1
                assert not artifact.sealed, f"{where}: another result"
        finally:
            path.write_bytes(whole)
        assert time.monotonic() - began < SECONDS, where
    assert peak_bytes() < allowed, f"{peak_bytes() / 2**20:.0f} MiB at most, {allowed / 2**20:.0f} allowed"
    assert same(artifact.read(folder), expected)
    print(f"{artifact.name}: {CASES} cases, {refused} refused, {equal} read right, {other} read as another file")

"""Where each result comes from: commit, lock, corpora, seed, device, time, read from the record that Snakemake keeps.

Snakemake notes for every file it makes the rule, the inputs, the command and the times, and makes the file anew when
its code or inputs change. What it notes is joined here with the state of the checkout.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe import machine
from lumoe.errors import UserError
from lumoe.files import read_json, sha256

METADATA = ".snakemake/metadata"
COLUMNS = (
    "file", "sha256", "rule", "started", "duration_s", "commit", "uncommitted_changes", "lock_sha256", "corpora_sha256",
    "inputs_sha256", "seed", "device", "command",
)  # fmt: skip


def metadata_path(root: Path, file: str) -> Path:
    """Return where Snakemake keeps its record of `file`; a long name is split into folders."""
    name = base64.b64encode(file.encode(), altchars=b"-_").decode()
    step = 254  # what a file name may hold, less the folders' leading @
    parts = [name[start : start + step] for start in range(0, len(name), step)]
    return Path(root, METADATA, *(f"@{part}" for part in parts[:-1]), parts[-1])


def read_metadata(root: Path, file: str) -> dict[str, Any] | None:
    """Return Snakemake's record of `file` (relative to `root`), None for one that it did not make."""
    path = metadata_path(root, file)
    record = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) and not record.get("incomplete") else None


def origins(root: Path, file: str) -> list[str]:
    """Return every file that `file` rests on, through all rules, sorted; without `file` itself."""
    found: set[str] = set()
    waiting = [file]
    while waiting:
        record = read_metadata(root, waiting.pop())
        new = set(record["input"] or ()) - found if record else set()
        found |= new
        waiting.extend(new)
    return sorted(found)


def combined_hash(root: Path, files: Iterable[str]) -> str:
    """Return one SHA-256 over the names and contents of `files`; empty for none, absent files count as absent."""
    names = sorted(files)
    if not names:
        return ""
    total = hashlib.sha256()
    for name in names:
        total.update(f"{name}\0{_hash(root / name)}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=4096)
def _hash(path: Path) -> str:
    return sha256(path) if path.is_file() else "absent"


def commit(root: Path) -> tuple[str, bool | None]:
    """Return the commit checked out at `root` and whether tracked files differ; ``("", None)`` outside a repository."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607 - on PATH
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "", None
    return head.stdout.strip(), bool(changes.stdout.strip())


def device() -> str:
    """Return the processor's name and the number of cores that this process may use."""
    return f"{machine.cpu_name()}, {machine.usable_cores()} cores"


def record(root: Path, results: Path, seed: int) -> pd.DataFrame:
    """Return one row per file below `results` that Snakemake made, sorted by name, with `COLUMNS`.

    Raises:
        UserError: `results` lies outside `root` or holds no file that Snakemake made.
    """
    root = root.resolve()
    folder = (root / results).resolve()
    if not folder.is_relative_to(root):
        raise UserError(f"{results}: not below {root}, where Snakemake keeps its records; run it in the checkout")
    head, changed = commit(root)
    lock = root / "requirements.lock"
    shared = {
        "commit": head,
        "uncommitted_changes": "unknown" if changed is None else str(changed).lower(),
        "lock_sha256": sha256(lock) if lock.is_file() else "",
        "seed": seed,
    }
    here = device()
    _hash.cache_clear()
    rows = []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        file = str(path.relative_to(root))
        made = read_metadata(root, file)
        if made is None:
            continue
        inputs = origins(root, file)
        corpora = [name for name in inputs if name.startswith(f"{folder.relative_to(root)}/corpora/")]
        rows.append(
            {
                "file": file,
                "sha256": sha256(path),
                "rule": made["rule"],
                "started": _time(made["starttime"]),
                "duration_s": round(made["endtime"] - made["starttime"], 3),
                **shared,
                "corpora_sha256": combined_hash(root, corpora),
                "inputs_sha256": combined_hash(root, inputs),
                "device": _measured_on(path) or here,
                "command": made["shellcmd"] or "",
            }
        )
    if not rows:
        raise UserError(f"{results}: no file there was made by the pipeline; run it first")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _measured_on(path: Path) -> str:
    """Return the device that a measured table names itself: the job may have run on another node than this one."""
    if path.suffix != ".csv":
        return ""
    try:
        head = pd.read_csv(path, nrows=1)
    except ValueError:
        return ""
    return str(head["device"].iloc[0]) if "device" in head and len(head) else ""


def describe(table: pd.DataFrame, file: str) -> dict[str, Any]:
    """Return the row of `file` in a provenance table as plain values.

    Raises:
        UserError: the table has no such file.
    """
    rows = table[table["file"] == file]
    if rows.empty:
        raise UserError(f"{file}: no provenance recorded; is the name as in the column 'file'?")
    row: dict[str, Any] = json.loads(rows.iloc[[0]].to_json(orient="records"))[0]
    return row

"""A model folder that can prove it is whole: the SHA-256 of each of its files in `manifest.json`."""

from __future__ import annotations

from pathlib import Path

from lumoe.errors import UserError
from lumoe.files import read_json, sha256, write_json
from lumoe.moe.checkpoint.reads import READS

NAME = "manifest.json"
# Files up to this size are verified whenever a model is opened; a shard of a large model would take minutes each time.
VERIFIED_AT_OPENING = 1 << 30


def write_manifest(folder: str | Path) -> None:
    """Record the SHA-256 of every file of `folder` in its manifest."""
    path = Path(folder)
    files = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.name != NAME
    )
    write_json(path / NAME, {"sha256": {file: sha256(path / file) for file in files}})


def verify_manifest(folder: str | Path, largest: int | None = None) -> None:
    """Check every file of `folder` against its manifest; files that it does not name are ignored.

    Args:
        folder: the model folder.
        largest: larger files than this many bytes are only looked for; None verifies all.

    Raises:
        UserError: no manifest, or a file that is absent or not the one that was recorded.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder}: no such model folder")
    record = read_json(path / NAME)
    sums = record.get("sha256") if isinstance(record, dict) else None
    if not isinstance(sums, dict) or not sums:
        raise UserError(f"{path / NAME}: not a manifest (no 'sha256'); get the model folder again")
    for file, digest in sums.items():
        if not _is_file(path / file):
            raise UserError(f"{path / file}: missing, but {path / NAME} names it; get the model folder again")
        if largest is not None and (path / file).stat().st_size > largest:
            continue
        READS.add(checked=(path / file).stat().st_size)
        if sha256(path / file) != digest:
            raise UserError(f"{path / file}: its SHA-256 is not the one in {path / NAME}; get the model folder again")


def verify_recorded(folder: str | Path) -> None:
    """Check a model that is being opened, where it has a manifest: all files up to `VERIFIED_AT_OPENING` bytes.

    Raises:
        UserError: a file is absent or not the one that was recorded.
    """
    if (Path(folder) / NAME).exists():
        verify_manifest(folder, VERIFIED_AT_OPENING)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name too long, or with a zero in it
        return False

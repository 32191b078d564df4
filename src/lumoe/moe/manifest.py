"""A model folder that can prove it is whole: the SHA-256 of each of its files in `manifest.json`."""

from __future__ import annotations

from pathlib import Path

from lumoe.errors import UserError
from lumoe.files import read_json, sha256, write_json

NAME = "manifest.json"


def write_manifest(folder: str | Path) -> None:
    """Record the SHA-256 of every file of `folder` in its manifest."""
    path = Path(folder)
    files = sorted(
        file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file() and file.name != NAME
    )
    write_json(path / NAME, {"sha256": {file: sha256(path / file) for file in files}})


def verify_manifest(folder: str | Path) -> None:
    """Check every file of `folder` against its manifest; files that it does not name are ignored.

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
        if not (path / file).is_file():
            raise UserError(f"{path / file}: missing, but {NAME} names it; get the model folder again")
        if sha256(path / file) != digest:
            raise UserError(f"{path / file}: its SHA-256 is not the one in {NAME}; get the model folder again")

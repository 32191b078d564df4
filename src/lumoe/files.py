"""Files that are either whole or absent, and tables that are the same bytes for the same numbers."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lumoe.errors import UserError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix) that becomes `path` on success and vanishes on failure.

    The temporary may be made a file or a directory by the caller; an existing `path` is replaced.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    temporary = scratch / target.name
    try:
        yield temporary
        if temporary.is_file():
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        temporary.replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(path: str | Path, table: pd.DataFrame, columns: Sequence[str] | None = None) -> None:
    """Write `table` with a header and no index; `columns`, where given, must exist and come first.

    Floats keep 10 significant digits: enough for every reader, few enough that the last bits of a sum that was
    taken in another order do not change the file.
    """
    if columns is not None:
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise KeyError(f"{path}: the table lacks the columns {missing}")
        table = table[[*columns, *(name for name in table.columns if name not in columns)]]
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False, float_format="%.10g", lineterminator="\n")


def read_csv(path: str | Path, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV file with a header and check that `columns` are there.

    Raises:
        UserError: the file is absent, not a table, or lacks a column.
    """
    try:
        table = pd.read_csv(path, encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a CSV table ({error})") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path}: the column '{missing[0]}' is missing; it has {', '.join(map(str, table.columns))}")
    return table


def read_yaml(path: str | Path) -> Any:
    """Read one YAML document.

    Raises:
        UserError: the file is absent or not YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from None


def read_json(path: str | Path) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is absent or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

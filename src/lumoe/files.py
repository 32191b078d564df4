"""Files that are either whole or absent, and tables that are the same bytes for the same numbers."""

from __future__ import annotations

import csv
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumoe.errors import UserError
from lumoe.resources import verify_shipped
from lumoe.strict_yaml import YamlError, parse_yaml

if TYPE_CHECKING:
    import pandas as pd

PART = ".part"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path` (same suffix) that becomes `path` on success and vanishes on failure.

    The temporary may be made a file or a directory by the caller; an existing `path` is replaced, but no folder by a
    file.

    Raises:
        UserError: the folder cannot be written to, the file system is full, or `path` is a folder and is to be a file.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        scratch, lock = _scratch(target)
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another place or free some") from None
    temporary = scratch / target.name
    try:
        yield temporary
        # A name must not reach the disk before its content: after a loss of power an empty file would count as done.
        for file in temporary.rglob("*") if temporary.is_dir() else [temporary]:
            if file.is_file():
                with file.open("rb") as content:
                    os.fsync(content.fileno())
        if target.is_dir() and not target.is_symlink():
            if not temporary.is_dir():
                raise UserError(f"{target}: is a folder; name a file to write")
            # Moved aside and removed last: to remove a large folder takes a while, in which a kill would leave neither.
            target.replace(scratch / f"{target.name}.replaced")
        temporary.replace(target)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"{target}: cannot be written ({error.strerror}); free some space and run it again") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _scratch(target: Path) -> tuple[Path, int]:
    """Make a folder beside `target` for its temporary; return it with a lock that goes when this process does."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent))
        try:
            lock = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:
            continue  # swept between its making and its opening
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.is_dir():
            return scratch, lock
        os.close(lock)  # swept before it was locked


def _sweep(target: Path) -> None:
    """Remove what writers of `target` left behind that were killed: nobody holds their locks any more."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.????????{PART}"):
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)
            finally:
                os.close(lock)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_sealed_json(path: str | Path, value: Mapping[str, Any]) -> None:
    """Write an object as JSON with a `seal`, the SHA-256 of the rest, that `read_sealed_json` checks."""
    write_json(path, {**value, "seal": _seal(value)})


def read_sealed_json(path: str | Path) -> dict[str, Any]:
    """Read what `write_sealed_json` wrote, without the seal.

    Raises:
        UserError: the file is absent, not such an object, or not what its seal says.
    """
    value = read_json(path)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is None:
        raise UserError(f"{path}: no seal, so not written by this version; make it again")
    if seal != _seal(value):
        raise UserError(f"{path}: damaged (not what its seal says); make it again")
    return dict(value)


def _seal(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


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
    """Read a CSV file with a header and check that `columns` are there and every row has as many fields as the header.

    Raises:
        UserError: the file is absent, not a table, cut off within a row, or lacks a column.
    """
    import pandas as pd  # tens of megabytes: a server reads no table where nothing was measured

    text = _read(path, "not a CSV table")
    try:
        _check_rows(text)
        table = pd.read_csv(StringIO(text))
    except (ValueError, csv.Error, OverflowError) as error:
        raise UserError(f"{path}: not a CSV table ({_line(error)})") from None
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise UserError(f"{path}: the column '{missing[0]}' is missing; it has {', '.join(map(str, table.columns))}")
    return table


def read_yaml(path: str | Path) -> Any:
    """Read one YAML document; a key given twice is an error.

    Raises:
        UserError: the file is absent or not YAML.
    """
    text = _read(path, "not YAML")
    try:
        return parse_yaml(text)
    except YamlError as error:
        raise UserError(f"{path}: not YAML ({error})") from None


def read_json(path: str | Path) -> Any:
    """Read one JSON document; a key given twice is an error.

    Raises:
        UserError: the file is absent or not JSON.
    """
    text = _read(path, "not JSON")
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({_line(error)})") from None


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise ValueError for a key given twice, of which `json` would keep the last unsaid."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice[:80]}' is given twice")
    return found


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file, held against the sums of the shipped files if it is one of them.

    Raises:
        UserError: the file is absent, cannot be read, or is not as shipped.
    """
    try:
        verify_shipped(Path(path))
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read(path: str | Path, otherwise: str) -> str:
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {otherwise} ({error})") from None
    if "\0" in text:
        raise UserError(f"{path}: {otherwise} (a zero byte at character {text.index(chr(0))})")
    return text


def _check_rows(text: str) -> None:
    """Raise ValueError for a row with fewer or more fields than the header; pandas would fill up the fewer unsaid."""
    if '"' not in text and "\r" not in text:
        lines = [line for line in text.split("\n") if line]
        counts = [line.count(",") + 1 for line in lines]
    else:
        counts = [len(row) for row in csv.reader(StringIO(text, newline=""), strict=True) if row]
    wrong = next((number for number, count in enumerate(counts, 1) if count != counts[0]), None)
    if wrong is not None:
        raise ValueError(f"row {wrong} has {counts[wrong - 1]} fields, the header {counts[0]}")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

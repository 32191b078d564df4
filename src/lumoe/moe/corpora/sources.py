"""Where a corpus comes from: ``package:NAME``, ``folder:PATH[:PROTOCOL]`` or ``hub:REPO[:SUBSET]``."""

from __future__ import annotations

from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from lumoe.errors import UserError, nearest
from lumoe.files import read_yaml
from lumoe.moe.corpora.corpus import SPLITS
from lumoe.moe.corpora.docstrings import Document
from lumoe.resources import data_path

KINDS = ("package", "folder", "hub")
_FILES = {"train": "train.txt", "validation": "valid.txt", "test": "test.txt"}
_COLUMNS = ("text", "sentence", "content", "document")


@dataclass(frozen=True)
class Source:
    """A parsed source: its kind, the package, path or repository, and the protocol or subset after it."""

    kind: str
    place: str
    detail: str = ""


def protocols() -> dict[str, dict[str, Any]]:
    """Return the published ways of reading WikiText-2, PTB and C4 (data/corpora.yaml), by name."""
    return dict(read_yaml(data_path("corpora.yaml")))


def parse_source(source: str) -> Source:
    """Parse ``package:NAME``, ``folder:PATH[:PROTOCOL]`` or ``hub:REPO[:SUBSET]``.

    Raises:
        UserError: another kind, or nothing after the colon.
    """
    kind, _, place = source.partition(":")
    if kind not in KINDS:
        raise UserError(f"corpus source '{source}': unknown kind '{kind}'{nearest(kind, KINDS)}")
    if not place:
        raise UserError(f"corpus source '{source}': nothing after '{kind}:'; give {kind}:NAME")
    head, _, tail = place.rpartition(":")
    if (kind == "folder" and head and tail in protocols()) or (kind == "hub" and head):
        return Source(kind, head, tail)
    return Source(kind, place)


def folder_splits(path: str | Path, protocol: str = "") -> tuple[dict[str, list[Document]], str]:
    """Return the splits of a folder of plain text and the separator that joins their documents.

    Without a protocol each file is one document, verbatim. With one, each line is a row of the public data set and rows
    are joined as that protocol joins them. ``test.txt`` must be there; ``train.txt`` and ``valid.txt`` may be absent.

    Raises:
        UserError: no such folder, no ``test.txt``, a ``validation.txt`` that would not be read, or a file that is not
            UTF-8.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"corpus source 'folder:{path}': no such folder")
    if not (folder / _FILES["test"]).is_file():
        raise UserError(f"corpus source 'folder:{path}': no test.txt in it (train.txt and valid.txt may be absent)")
    if (folder / "validation.txt").is_file() and not (folder / _FILES["validation"]).is_file():
        raise UserError(f"corpus source 'folder:{path}': validation.txt would not be read; rename it to valid.txt")
    settings: dict[str, Any] = protocols()[protocol] if protocol else {"separator": "\n\n"}
    splits: dict[str, list[Document]] = {}
    for name, file in _FILES.items():
        if not (folder / file).is_file():
            continue
        try:
            text = (folder / file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"corpus source 'folder:{path}': {file} is not UTF-8 ({error.reason})") from None
        if protocol:
            lines = islice(StringIO(text, newline="\n"), settings["documents"].get(name))
            rows = lines if settings["newline"] else (line.rstrip("\n") for line in lines)
            splits[name] = [Document(row, f"{file}:{number}") for number, row in enumerate(rows, 1)]
        else:
            splits[name] = [Document(text, file)]
    return splits, str(settings["separator"])


def hub_splits(repository: str, subset: str, documents: int) -> tuple[dict[str, list[Document]], str]:
    """Return the splits of a data set of the Hugging Face hub (or a local copy of one) and their separator.

    A repository of data/corpora.yaml is read under its published protocol, any other one row a document.

    Args:
        repository: ``owner/name`` or the path of a local data set that `datasets.load_dataset` reads.
        subset: configuration name, or "".
        documents: at most so many rows are read per split where no protocol says how many.

    Raises:
        UserError: the data set cannot be loaded, or has no text column or no test split.
    """
    known = next((p for p in protocols().values() if p["repository"] == repository), None)
    settings: dict[str, Any] = known or {
        "separator": "\n\n",
        "documents": {},
        "splits": {name: name for name in SPLITS},
    }
    subset = subset or str(settings.get("subset") or "")
    label = f"corpus source 'hub:{repository}{':' + subset if subset else ''}'"
    splits: dict[str, list[Document]] = {}
    for name, remote in settings["splits"].items():
        # A benchmark's test and validation splits are read whole: a cut one is another benchmark.
        limit = settings["documents"].get(name, documents if name == "train" or known is None else None)
        rows = _hub_rows(repository, subset, settings, remote, limit, label)
        if rows is not None:
            splits[name] = [Document(row, f"{repository}:{remote}:{number}") for number, row in enumerate(rows)]
    if "test" not in splits:
        raise UserError(f"{label}: it has no test split; use a data set with one, or folder:PATH with a test.txt")
    return splits, str(settings["separator"])


def _hub_rows(
    repository: str, subset: str, settings: dict[str, Any], split: str, limit: int | None, label: str
) -> list[str] | None:
    """Return the texts of one split, or None where the data set has no such split."""
    from datasets import get_dataset_split_names, load_dataset

    revision = settings.get("revision")
    try:
        # Streaming reads no more of a large data set than is asked for.
        if split not in get_dataset_split_names(repository, subset or None, revision=revision):
            return None
        rows = load_dataset(repository, subset or None, split=split, revision=revision, streaming=True)
        first: list[dict[str, Any]] = list(islice(rows, limit))
    except Exception as error:  # datasets raises a dozen unrelated types for an absent or unreachable data set
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{label}: cannot be loaded ({type(error).__name__}: {reason}); check name and network"
        ) from None
    columns = [settings["column"]] if "column" in settings else list(_COLUMNS)
    column = next((name for name in columns if first and name in first[0]), None)
    if column is None:
        raise UserError(f"{label}: no text column ({' or '.join(columns)}) in its split '{split}'")
    return [str(row[column]) for row in first]

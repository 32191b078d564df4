"""Corpora on disk: one document a line per split, deduplicated across corpora, split by a hash of the text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumoe.errors import UserError
from lumoe.files import read_bytes, read_sealed_json, unique_keys, write_sealed_json, write_text
from lumoe.moe.corpora.docstrings import Document

SPLITS = ("train", "validation", "test")
STATISTICS = "statistics.json"
_SHORT_LINE = 20  # characters; shorter lines ("Parameters", "Returns") are shared by all docstrings and say nothing


@dataclass
class Deduplicator:
    """Drops documents already seen, verbatim up to white space or mostly made of lines of earlier documents.

    API documentation repeats itself (parameters shared by a family of functions). A test document whose lines stand
    in a train document would make the held-out perplexity a measure of memory.
    """

    duplicates: int = 0
    near_duplicates: int = 0
    _texts: set[bytes] = field(default_factory=set)
    _lines: set[str] = field(default_factory=set)

    def keep(self, documents: Iterable[Document]) -> list[Document]:
        """Return the documents that are new, in their order, and remember them."""
        return [document for document in documents if self._is_new(document.text)]

    def _is_new(self, text: str) -> bool:
        digest = hashlib.sha256(" ".join(text.split()).encode()).digest()
        if digest in self._texts:
            self.duplicates += 1
            return False
        self._texts.add(digest)
        lines = [line.strip() for line in text.splitlines() if len(line.strip()) >= _SHORT_LINE]
        known = sum(len(line) for line in lines if line in self._lines)
        self._lines.update(lines)
        if 2 * known > sum(map(len, lines)):
            self.near_duplicates += 1
            return False
        return True


def split_of(text: str, validation: float, test: float) -> str:
    """Return the split of a document: a hash of its text, so that it never moves when others come or go."""
    share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"


def split(documents: Iterable[Document], validation: float, test: float) -> dict[str, list[Document]]:
    """Return the documents of each split, in their order."""
    parts: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for document in documents:
        parts[split_of(document.text, validation, test)].append(document)
    return parts


def write_corpus(
    folder: str | Path, splits: Mapping[str, list[Document]], separator: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the splits as JSON lines and their statistics; return the statistics.

    Args:
        folder: gets ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``statistics.json``.
        splits: split name -> documents; a split that is left out is written empty.
        separator: the text that joins documents when the corpus is read as one text.
        provenance: what else the statistics should say (source, package version, duplicates dropped).

    Raises:
        UserError: there is no text in the test split.
    """
    if not any(document.text for document in splits.get("test", [])):
        raise UserError(f"corpus '{Path(folder).name}' ({provenance.get('source', '')}): the test split holds no text")
    statistics: dict[str, Any] = {**provenance, "separator": separator, "splits": {}}
    for name in SPLITS:
        documents = splits.get(name, [])
        lines = [json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in documents]
        content = "".join(lines)
        write_text(Path(folder) / f"{name}.jsonl", content)
        statistics["splits"][name] = {
            "documents": len(documents),
            "characters": sum(len(document.text) for document in documents),
            "bytes": sum(len(document.text.encode()) for document in documents),
            "words": sum(len(document.text.split()) for document in documents),
            "sha256": hashlib.sha256(content.encode()).hexdigest(),
        }
    # Last: a folder with statistics is a whole corpus, and its texts are those whose sums stand there.
    write_sealed_json(Path(folder) / STATISTICS, statistics)
    return statistics


def read_statistics(folder: str | Path) -> dict[str, Any]:
    """Return what `write_corpus` recorded.

    Raises:
        UserError: `folder` is not a corpus.
    """
    path = Path(folder) / STATISTICS
    if not path.is_file():
        raise UserError(f"{folder}: not a corpus (no {STATISTICS}); build one with `lumoe corpus build`")
    statistics = read_sealed_json(path)
    if not {"separator", "splits"} <= statistics.keys():
        raise UserError(f"{path}: not the statistics of a corpus; build it again with `lumoe corpus build`")
    return statistics


def read_documents(folder: str | Path, name: str) -> list[str]:
    """Return the texts of the split `name` (train, validation or test) of the corpus in `folder`.

    Raises:
        UserError: no such corpus or split, or a split that is not the one whose SHA-256 the statistics record.
    """
    statistics = read_statistics(folder)
    path = Path(folder) / f"{name}.jsonl"
    try:
        recorded = statistics["splits"][name]["sha256"]
    except (KeyError, TypeError):
        raise UserError(f"{Path(folder) / STATISTICS}: it has no split '{name}'") from None
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != recorded:
        raise UserError(
            f"{path}: its SHA-256 is not the one in {STATISTICS}; build the corpus again with `lumoe corpus build`"
        )
    try:
        lines = content.decode().split("\n")[:-1]
        return [str(json.loads(line, object_pairs_hook=unique_keys)["text"]) for line in lines]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not one JSON document with a 'text' a line ({error})") from None


def read_text(folder: str | Path, name: str) -> str:
    """Return the split `name` as the one text that perplexity is measured on: documents joined by the separator."""
    return str(read_statistics(folder)["separator"]).join(read_documents(folder, name))

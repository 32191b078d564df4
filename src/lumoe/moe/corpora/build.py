"""Build corpora from their sources: split, deduplicate where nobody else has, write, record where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.errors import UserError
from lumoe.files import write_csv
from lumoe.moe.corpora.corpus import Deduplicator, split, write_corpus
from lumoe.moe.corpora.docstrings import Document, package_documents, package_folder, package_version
from lumoe.moe.corpora.sources import Source, folder_splits, hub_splits, parse_source, protocols
from lumoe.progress import track

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def parse_assignments(assignments: Iterable[str]) -> dict[str, Source]:
    """Parse ``NAME=SOURCE`` words in their order.

    Raises:
        UserError: no name, a name that cannot be a folder, a name given twice, or a bad source.
    """
    sources: dict[str, Source] = {}
    for assignment in assignments:
        name, equals, source = assignment.partition("=")
        if not equals:
            raise UserError(f"corpus '{assignment}': write NAME=SOURCE, for example scipy=package:scipy")
        if not _NAME.fullmatch(name):
            raise UserError(f"corpus name '{name}': use letters, digits, '.', '_' and '-' only")
        if name in sources:
            raise UserError(f"corpus '{name}' is given twice; choose another name for one of them")
        sources[name] = parse_source(source)
    return sources


def build_corpora(
    sources: Mapping[str, Source],
    output: str | Path,
    *,
    validation: float,
    test: float,
    minimum_characters: int,
    hub_documents: int,
) -> dict[str, dict[str, Any]]:
    """Write one corpus folder per source under `output`; return their statistics by name.

    Documents of packages are deduplicated across packages in the order of `sources` and split here. Folders and hub
    data sets are benchmarks: they keep their own splits and every row.

    Raises:
        UserError: a source cannot be read; nothing is written then.
    """
    for source in sources.values():  # a typing mistake in the last source should not cost the reading of the first
        if source.kind == "package":
            package_folder(source.place)
    deduplicator = Deduplicator()
    corpora: list[tuple[str, dict[str, list[Document]], str, dict[str, Any]]] = []
    for name, source in track(sources.items(), "corpora"):
        written = f"{source.kind}:{source.place}" + (f":{source.detail}" if source.detail else "")
        provenance: dict[str, Any] = {"source": written}
        if source.kind == "package":
            before = (deduplicator.duplicates, deduplicator.near_duplicates)
            documents = deduplicator.keep(package_documents(source.place, minimum_characters))
            splits, separator = split(documents, validation, test), "\n\n"
            provenance |= {
                "package": source.place,
                "version": package_version(source.place),
                "duplicates_dropped": deduplicator.duplicates - before[0],
                "near_duplicates_dropped": deduplicator.near_duplicates - before[1],
                "minimum_characters": minimum_characters,
            }
        elif source.kind == "folder":
            splits, separator = folder_splits(source.place, source.detail)
            if source.detail:
                provenance |= {"protocol": source.detail, "windows": protocols()[source.detail]["windows"]}
        else:
            splits, separator = hub_splits(source.place, source.detail, hub_documents)
            known = {key: p for key, p in protocols().items() if p["repository"] == source.place}
            for key, protocol in known.items():
                provenance |= {"protocol": key, "windows": protocol["windows"]}
        corpora.append((name, splits, separator, provenance))
    statistics = {
        name: write_corpus(Path(output) / name, splits, separator, provenance)
        for name, splits, separator, provenance in corpora
    }
    write_csv(Path(output) / "corpora.csv", summary(statistics))
    return statistics


def summary(statistics: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the statistics of corpora as one table, a row per corpus and split."""
    return pd.DataFrame(
        [
            {"corpus": name, "source": values["source"], "version": values.get("version", ""), "split": part, **numbers}
            for name, values in statistics.items()
            for part, numbers in values["splits"].items()
        ]
    )

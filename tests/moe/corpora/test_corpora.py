"""Corpora: what is read, what is dropped, where it goes, and what a mistake says."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.corpora.build import build_corpora, parse_assignments
from lumoe.moe.corpora.corpus import (
    SPLITS,
    Deduplicator,
    read_documents,
    read_statistics,
    read_text,
    split_of,
    write_corpus,
)
from lumoe.moe.corpora.docstrings import Document, clean, package_documents
from lumoe.moe.corpora.sources import folder_splits, hub_splits, parse_source, protocols

OPTIONS = {"validation": 0.1, "test": 0.3, "minimum_characters": 60, "hub_documents": 100}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two small packages on the path that share some docstrings."""
    shared = '"""Return the mean of the values that were given, computed along the chosen axis of the array."""'
    for name in ("alphapkg", "betapkg"):
        folder = tmp_path / "site" / name
        (folder / "tests").mkdir(parents=True)
        functions = [
            f'def f{i}():\n    """The {name} function number {i}, {hashlib.sha256(f"{name}{i}".encode()).hexdigest()}.'
            f'\n\n    It is number {i} of {name} and says so at some length, {i * 7} times over."""\n'
            for i in range(40)
        ]
        body = "\n".join(functions) + f"\ndef shared():\n    {shared}\n"
        (folder / "__init__.py").write_text("raise RuntimeError('a corpus must not import its packages')\n")
        (folder / "module.py").write_text(body)
        (folder / "tests" / "test_module.py").write_text(f"def f():\n    {'x' and shared.replace('mean', 'TEST')}\n")
        (folder / "broken.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return tmp_path


def test_package_corpora_hold_every_docstring_once(packages: Path) -> None:
    sources = parse_assignments(["a=package:alphapkg", "b=package:betapkg"])
    statistics = build_corpora(sources, packages / "out", **OPTIONS)
    texts = {name: [text for part in SPLITS for text in read_documents(packages / "out" / name, part)] for name in "ab"}
    assert len(texts["a"]) == 41
    assert len(texts["b"]) == 40  # the shared one belongs to the first
    assert statistics["b"]["duplicates_dropped"] == 1
    assert not set(texts["a"]) & set(texts["b"])
    assert not any("TEST" in text for text in texts["a"])
    assert all(statistics["a"]["splits"][part]["documents"] for part in SPLITS)


def test_statistics_are_those_of_the_files(packages: Path) -> None:
    build_corpora(parse_assignments(["a=package:alphapkg"]), packages / "out", **OPTIONS)
    folder = packages / "out" / "a"
    for part, numbers in read_statistics(folder)["splits"].items():
        content = (folder / f"{part}.jsonl").read_bytes()
        texts = [json.loads(line)["text"] for line in content.splitlines()]
        assert numbers["sha256"] == hashlib.sha256(content).hexdigest()
        assert numbers["words"] == sum(len(text.split()) for text in texts)
        assert numbers["bytes"] == len("".join(texts).encode())
    table = read_csv(packages / "out" / "corpora.csv").set_index("split")
    assert table.loc["test", "sha256"] == read_statistics(folder)["splits"]["test"]["sha256"]
    origins = [json.loads(line)["origin"] for line in (folder / "test.jsonl").read_text().splitlines()]
    assert all(origin.startswith("alphapkg/module.py:") for origin in origins)


def test_a_rebuild_is_the_same_bytes(packages: Path) -> None:
    sources = parse_assignments(["a=package:alphapkg", "b=package:betapkg"])
    for out in ("one", "two"):
        build_corpora(sources, packages / out, **OPTIONS)
    for file in (packages / "one").rglob("*.*"):
        assert file.read_bytes() == (packages / "two" / file.relative_to(packages / "one")).read_bytes()


def test_nested_definitions_are_named(packages: Path) -> None:
    (packages / "site" / "alphapkg" / "nested.py").write_text(
        "class A:\n    if True:\n        def f(self):\n            '''" + "A long description. " * 8 + "'''\n"
    )
    documents = list(package_documents("alphapkg", 60))
    assert "alphapkg/nested.py:A.f" in {document.origin for document in documents}


def test_cleaning_drops_doctests_and_blank_runs() -> None:
    text = "Title.  \n\n\n\nText.\n\n>>> f(1)\narray([1])\n>>> g(\n... 2)\n3\n\n\tMore text."
    assert clean(text) == "Title.\n\nText.\n\n    More text."


def test_a_document_made_of_earlier_lines_is_dropped() -> None:
    lines = [f"this is line number {i} of a long description" for i in range(10)]
    deduplicator = Deduplicator()
    kept = deduplicator.keep(
        [
            Document("\n".join(lines), "first"),
            Document("\n".join([*lines[:7], "and one line that is new in this text"]), "mostly known"),
            Document("\n".join([*lines[:2], *(f"something else, number {i}" for i in range(6))]), "mostly new"),
            Document("  " + "\n\n".join(lines), "the same words"),
        ]
    )
    assert [document.origin for document in kept] == ["first", "mostly new"]
    assert (deduplicator.duplicates, deduplicator.near_duplicates) == (1, 1)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.text(), max_size=30))
def test_documents_survive_the_disk(texts: list[str]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        write_corpus(folder, {"test": [Document(text, "here") for text in [*texts, "x"]]}, " | ", {})
        assert read_documents(folder, "test") == [*texts, "x"]
        assert read_text(folder, "test") == " | ".join([*texts, "x"])


def test_the_split_depends_on_the_text_alone_and_keeps_its_shares() -> None:
    names = [split_of(f"document {i}", 0.1, 0.2) for i in range(4000)]
    assert names == [split_of(f"document {i}", 0.1, 0.2) for i in range(4000)]
    # Four standard deviations of a binomial share.
    assert names.count("test") / 4000 == pytest.approx(0.2, abs=4 * (0.2 * 0.8 / 4000) ** 0.5)
    assert names.count("validation") / 4000 == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 4000) ** 0.5)


def test_a_folder_is_read_verbatim_or_under_a_protocol(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("one line\nanother\n")
    (tmp_path / "valid.txt").write_text("valid\n")
    splits, separator = folder_splits(tmp_path)
    assert separator.join(document.text for document in splits["test"]) == "one line\nanother\n"
    assert set(splits) == {"test", "validation"}
    joined = {}
    for protocol in ("wikitext2", "ptb"):
        splits, separator = folder_splits(tmp_path, protocol)
        joined[protocol] = separator.join(document.text for document in splits["test"])
    assert joined == {"wikitext2": "one line\n\n\nanother\n", "ptb": "one line another"}


def test_a_validation_file_of_another_name_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("test\n")
    (tmp_path / "validation.txt").write_text("valid\n")
    with pytest.raises(UserError, match=r"validation\.txt would not be read; rename it to valid\.txt"):
        folder_splits(tmp_path)


def test_c4_is_its_first_1100_documents(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("".join(f"document {i}\n" for i in range(1500)))
    splits, separator = folder_splits(tmp_path, "c4")
    assert (len(splits["test"]), splits["test"][-1].text, separator) == (1100, "document 1099", " ")
    assert protocols()["c4"]["windows"] == 256


def test_a_hub_data_set_is_read_through_datasets(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for part in ("train", "test"):
        rows = [json.dumps({"text": f"{part} {i}"}) for i in range(5)]
        (tmp_path / "set" / f"{part}.jsonl").write_text("\n".join(rows) + "\n")
    splits, separator = hub_splits(str(tmp_path / "set"), "", documents=3)
    assert [document.text for document in splits["test"]] == ["test 0", "test 1", "test 2"]
    assert separator == "\n\n"
    assert "validation" not in splits


def test_a_hub_data_set_without_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "test.jsonl").write_text('{"label": 1}\n')
    with pytest.raises(UserError, match="no text column"):
        hub_splits(str(tmp_path / "set"), "", documents=3)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("package:scipy", "write NAME=SOURCE"),
        ("a/b=package:scipy", "corpus name 'a/b'"),
        ("a=packages:scipy", "did you mean 'package'"),
        ("a=folder:", "nothing after 'folder:'"),
    ],
)
def test_a_bad_source_is_one_sentence(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_assignments([assignment])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:no_such_package_here", "no such package is installed"),
        ("package:not-a-name", "no such package is installed"),
        ("package:six", "a single module"),
        ("folder:/no/such/folder", "no such folder"),
        ("hub:/no/such/data/set", "cannot be loaded"),
    ],
)
def test_a_source_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_corpora(parse_assignments([f"a={source}"]), tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_corpus_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no test\.txt"):
        folder_splits(tmp_path)
    with pytest.raises(UserError, match="not a corpus"):
        read_text(tmp_path, "test")
    (tmp_path / "test.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        folder_splits(tmp_path)
    write_corpus(tmp_path, {"test": [Document("a text", "here")]}, " ", {})
    (tmp_path / "test.jsonl").write_text('{"text": "another"}\n')
    with pytest.raises(UserError, match=r"test\.jsonl: its SHA-256"):
        read_documents(tmp_path, "test")


def test_a_source_is_parsed_into_place_and_detail() -> None:
    assert parse_source("hub:owner/name:subset").detail == "subset"
    assert parse_source("folder:/data/a:b").place == "/data/a:b"
    assert parse_source("folder:/data/a:ptb").detail == "ptb"

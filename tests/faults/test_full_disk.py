"""A full disk: one sentence that says so, the old file or none, and never a part of a file under its final name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from artifacts import TOKENS
from tiny_model import make_model

from lumoe.errors import UserError
from lumoe.files import read_csv, write_csv, write_json, write_text
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.corpora.corpus import write_corpus
from lumoe.moe.corpora.docstrings import Document
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize

SIZE = 256 << 10


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run([mount, "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leave no room at all."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_table_that_does_not_fit_leaves_the_old_one(small: Path) -> None:
    path = small / "table.csv"
    write_csv(path, pd.DataFrame({"a": [1]}))
    large = pd.DataFrame({"a": np.arange(100_000)})
    with pytest.raises(UserError, match=rf"{path}: cannot be written \(No space left on device\); free some"):
        write_csv(path, large)
    assert len(read_csv(path)) == 1
    assert [file.name for file in small.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("write", [lambda path: write_text(path, "text\n"), lambda path: write_json(path, {"a": 1})])
def test_a_full_disk_leaves_no_empty_file(small: Path, write: object) -> None:
    fill(small)
    with pytest.raises(UserError, match="No space left on device"):
        write(small / "new")  # type: ignore[operator]
    assert not (small / "new").exists()


def test_a_corpus_that_does_not_fit_is_no_corpus(small: Path) -> None:
    documents = [Document("a line of text, and another one\n" * 100, str(number)) for number in range(100)]
    with pytest.raises(UserError, match="No space left on device"):
        write_corpus(small / "c", {"train": documents, "test": documents}, "\n", {})
    assert not (small / "c" / "statistics.json").exists()
    assert all(path.stat().st_size == 0 or path.read_text().endswith("\n") for path in small.glob("c/*.jsonl"))


def test_quantising_goes_on_once_there_is_room(small: Path, tmp_path: Path) -> None:
    model = Checkpoint(make_model(tmp_path / "model"))
    (small / "filler").write_bytes(bytes(SIZE - (40 << 10)))
    with pytest.raises(UserError, match=r"layer-\d\d-expert-\d\d.safetensors: cannot be written \(No space"):
        quantize(model, TOKENS, small / "store", Recipe("rtn", 4, 32))
    kept = {path: path.stat().st_mtime_ns for path in (small / "store").glob("layer-*")}
    assert 0 < len(kept) < 6
    (small / "filler").unlink()
    quantize(model, TOKENS, small / "store", Recipe("rtn", 4, 32))
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert QuantizedExperts(small / "store").bits == 4


def test_the_command_says_so_in_one_line(small: Path) -> None:
    fill(small)
    code = "from lumoe.cli import main; main()"
    command = [sys.executable, "-c", code, "config", "write", "--defaults", str(small / "a.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert (
        done.stderr == f"lumoe: {small}/a.yaml: cannot be written (No space left on device); free some space and "
        "run it again\n"
    )

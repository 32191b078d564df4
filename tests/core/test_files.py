"""Files are whole or absent; tables are the same bytes for the same numbers; bad files name themselves."""

from __future__ import annotations

import hashlib
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lumoe.errors import UserError, nearest
from lumoe.files import atomic_path, read_csv, read_json, read_yaml, sha256, write_csv, write_json, write_text


def test_a_failure_leaves_the_old_file_and_no_scratch(tmp_path: Path) -> None:
    target = tmp_path / "table.txt"
    write_text(target, "old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert target.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


WRITER = """
import sys, time
from lumoe.files import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_goes_with_the_next_write_and_a_live_ones_stays(tmp_path: Path) -> None:
    target = tmp_path / "table[1].csv"
    other = tmp_path / f".{target.name}.original"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
        (left,) = tmp_path.glob("*.part")
        write_text(target, "first")
        assert (left / target.name).read_text(encoding="utf-8") == "half"
        writer.kill()
    assert left.is_dir()
    write_text(target, "second")
    assert sorted(tmp_path.iterdir()) == sorted([other, target])
    assert target.read_text(encoding="utf-8") == "second"


def test_a_folder_that_is_swept_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    original = tempfile.mkdtemp

    def swept_once(**options: Any) -> str:
        made.append(original(**options))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept_once)
    write_text(tmp_path / "table.csv", "whole")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "store"
    for name in ("first", "second"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name, encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_csv_round_trip_and_column_order(tmp_path: Path) -> None:
    table = pd.DataFrame({"b": [1, 2], "a": [0.1 + 0.2, np.nan]})
    write_csv(tmp_path / "t.csv", table, ["a"])
    assert (tmp_path / "t.csv").read_bytes() == b"a,b\n0.3,1\n,2\n"
    assert list(read_csv(tmp_path / "t.csv", ["b"]).columns) == ["a", "b"]


def test_writing_without_a_promised_column_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="missing_one"):
        write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1]}), ["missing_one"])
    assert not (tmp_path / "t.csv").exists()


@pytest.mark.parametrize(
    ("reader", "content", "words"),
    [
        (read_csv, b"", "not a CSV"),
        (read_csv, b"\xff\xfe\x00a", "not a CSV"),
        (read_yaml, b"a: [1", "not YAML"),
        (read_json, b'{"a": ', "not JSON"),
        (read_json, b"[" * 100_000, "not JSON"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, reader: object, content: bytes, words: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        reader(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("reader", [read_csv, read_yaml, read_json])
def test_an_absent_file_is_named(tmp_path: Path, reader: object) -> None:
    with pytest.raises(UserError, match="no such file"):
        reader(tmp_path / "absent")  # type: ignore[operator]


def test_a_missing_column_names_those_present(tmp_path: Path) -> None:
    write_csv(tmp_path / "t.csv", pd.DataFrame({"a": [1]}))
    with pytest.raises(UserError, match="'b' is missing; it has a"):
        read_csv(tmp_path / "t.csv", ["b"])


def test_sha256_matches_hashlib(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": 1})
    assert sha256(tmp_path / "x.json") == hashlib.sha256('{\n  "é": 1\n}\n'.encode()).hexdigest()


def test_nearest_word_or_the_list() -> None:
    assert nearest("througput", ["throughput", "seed"]) == "; did you mean 'throughput'?"
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


def test_a_checkout_that_is_not_installed_finds_and_checks_its_data() -> None:
    """`python -m benchmarks.true_scale` is run so, on machines with a torch of their own."""
    root = Path(__file__).parents[2]
    code = (
        "from lumoe.resources import data_path, verify_shipped\n"
        "from lumoe.files import read_yaml\n"
        "print(read_yaml(data_path('shapes', 'mixtral-8x7b.yaml'))['num_local_experts'])"
    )
    # Without `site`, what is installed in editable form is not found; packages are, by their folder.
    paths = [str(root / "src"), *site.getsitepackages()]
    run = [sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {paths!r}\n{code}"]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.returncode) == ("8\n", 0), done.stderr


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "kept").write_text("work")
    with pytest.raises(UserError, match=f"{folder}: is a folder; name a file"):
        write_text(folder, "a table")
    assert (folder / "kept").read_text() == "work"
    assert [path.name for path in tmp_path.iterdir()] == ["results"]

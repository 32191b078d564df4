"""Provenance is read from what Snakemake really recorded: a small pipeline is run and asked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lumoe.errors import UserError
from lumoe.files import sha256, write_csv
from lumoe.pipeline import provenance

SNAKEFILE = """
rule all:
    input: "results/table.csv", "results/{long}.csv"
rule build_corpora:
    input: "text.txt"
    output: "results/corpora/text.jsonl"
    shell: "cp {{input}} {{output}}"
rule count:
    input: "results/corpora/text.jsonl", code="count.py"
    output: "results/table.csv"
    shell: "printf 'tokens,device\\\\n3,Node 7\\\\n' > {{output}}"
rule other:
    output: "results/{long}.csv"
    shell: "echo a > {{output}}"
"""
LONG = "n" * 220  # its record's name is longer than a file name may be


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    (root / "Snakefile").write_text(SNAKEFILE.format(long=LONG))
    (root / "text.txt").write_text("one two three")
    (root / "count.py").write_text("pass")
    (root / "requirements.lock").write_text("numpy==2.0\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "Snakefile", "text.txt"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    subprocess.run([sys.executable, "-m", "snakemake", "--cores", "1", "--quiet"], cwd=root, check=True, timeout=120)
    return root


def test_each_file_names_its_rule_its_time_and_its_state_of_the_checkout(checkout: Path) -> None:
    (checkout / "results/foreign.csv").write_text("not,made\n")
    table = provenance.record(checkout, Path("results"), seed=5).set_index("file")
    assert set(table.index) == {"results/corpora/text.jsonl", "results/table.csv", f"results/{LONG}.csv"}
    row = table.loc["results/table.csv"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    assert row["commit"] == head.stdout.strip()
    assert row["uncommitted_changes"] == "false"
    assert row["lock_sha256"] == sha256(checkout / "requirements.lock")
    assert row["sha256"] == sha256(checkout / "results/table.csv")
    assert (row["rule"], row["seed"]) == ("count", 5)
    assert row["duration_s"] >= 0
    assert row["device"] == "Node 7", "a measured table names its own device"
    assert table.loc["results/corpora/text.jsonl", "device"] == provenance.device()


def test_corpora_count_only_where_a_result_rests_on_them(checkout: Path) -> None:
    table = provenance.record(checkout, Path("results"), seed=0).set_index("file")
    text = "results/corpora/text.jsonl"
    assert table.loc["results/table.csv", "corpora_sha256"] == provenance.combined_hash(checkout, [text])
    assert table.loc[f"results/{LONG}.csv", "corpora_sha256"] == ""
    assert provenance.origins(checkout, "results/table.csv") == ["count.py", text, "text.txt"]


def test_the_hash_of_the_inputs_follows_their_content(checkout: Path) -> None:
    before = provenance.record(checkout, Path("results"), seed=0).set_index("file")["inputs_sha256"]
    code = checkout / "count.py"
    code.write_text("changed")
    after = provenance.record(checkout, Path("results"), seed=0).set_index("file")["inputs_sha256"]
    code.write_text("pass")
    assert before["results/table.csv"] != after["results/table.csv"]
    assert before["results/corpora/text.jsonl"] == after["results/corpora/text.jsonl"]


def test_an_edited_checkout_is_called_so(checkout: Path) -> None:
    text = checkout / "text.txt"
    original = text.read_text()
    text.write_text("edited")
    assert provenance.commit(checkout)[1] is True
    text.write_text(original)
    assert provenance.commit(checkout)[1] is False


def test_outside_a_repository_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit(tmp_path) == ("", None)


def test_results_that_no_pipeline_made_are_the_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    with pytest.raises(UserError, match="made by the pipeline"):
        provenance.record(tmp_path, Path("results"), seed=0)
    with pytest.raises(UserError, match="not below"):
        provenance.record(tmp_path / "results", tmp_path, seed=0)


def test_one_file_is_found_in_the_table(checkout: Path, tmp_path: Path) -> None:
    table = provenance.record(checkout, Path("results"), seed=0)
    write_csv(tmp_path / "provenance.csv", table, provenance.COLUMNS)
    assert provenance.describe(table, "results/table.csv")["rule"] == "count"
    with pytest.raises(UserError, match=r"no provenance recorded"):
        provenance.describe(table, "results/absent.csv")

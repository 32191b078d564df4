"""The workflow as its users meet it: targets, mistakes and their exit codes. Nothing is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def snakemake(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Return a copy of what the workflow reads, so that no lock or metadata of a real run is touched."""
    for name in ("workflow", "config", "data", "src", "profiles"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "Snakefile", tmp_path)
    return tmp_path


def planned(run: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the rules in the table of jobs that a dry run prints."""
    assert run.returncode == 0, run.stderr
    rows = [line.split() for line in (run.stdout + run.stderr).splitlines()]
    table = rows[rows.index(["job", "count"]) + 2 :]
    return {row[0] for row in takewhile(lambda row: row and row[0] != "total", table)}


def test_everything_is_planned_from_a_fresh_checkout(checkout: Path) -> None:
    rules = planned(snakemake("--dry-run", "--quiet=rules", folder=checkout))
    assert {"all", "judge_claims", "draw_claims", "print_claims"} <= rules
    assert not {"train", "train_model"} & rules, "the shipped model is not retrained unless asked for"


def test_one_table_runs_just_what_it_needs(checkout: Path) -> None:
    rules = planned(
        snakemake("--dry-run", "--quiet=rules", "results/photonics/pcnna/alexnet-ungrouped.csv", folder=checkout)
    )
    assert len(rules) <= 2, rules


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("sead=3", ["unknown key 'sead'", "'seed'"]),
        ("perplexity={counts: none}", ["'perplexity.counts'", "'none'"]),
        ("throughput={repeat: 3}", ["'throughput.repeat'", "'repeats'"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_code_2(checkout: Path, setting: str, words: list[str]) -> None:
    run = snakemake("--dry-run", "--config", setting, folder=checkout)
    complaint = [line for line in run.stderr.splitlines() if line.startswith("lumoe:")]
    assert run.returncode == 2
    assert len(complaint) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert all(word in complaint[0] for word in words), complaint


def test_mixtral_is_scored_and_timed_on_the_gpu_one_job_at_a_time(checkout: Path) -> None:
    run = snakemake("claims", "--dry-run", "--configfile", "config/mixtral-8x7b.yaml", folder=checkout)
    assert run.returncode == 0, run.stderr
    jobs = re.split(r"\n\[", run.stdout + run.stderr)
    runs_model = [job for job in jobs if re.search(r"lumoe moe (perplexity |sensitivity|calibrate|throughput)", job)]
    # Three corpora with three random orders and one by sensitivity, and one of each of the others.
    assert len(runs_model) == 3 * (3 + 1) + 3
    assert all("--device cuda" in job and "gpu=1" in job for job in runs_model)
    # The default profile has one GPU to give: more jobs at once would not fit into its memory.
    assert (checkout / "profiles/default/config.yaml").read_text(encoding="utf-8").count("  gpu: 1\n") == 1


def test_without_a_gpu_no_rule_asks_for_one(checkout: Path) -> None:
    run = snakemake("--dry-run", folder=checkout)
    assert "gpu=1" not in run.stdout + run.stderr
    assert (run.stdout + run.stderr).count("--device cpu") > 10

"""`lumoe moe residency` on the shipped model: both of its tables, and a plan by the second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumoe.cli.moe.measure import app as measure
from lumoe.cli.moe.plan import app as plan
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.corpora.corpus import Document, write_corpus
from lumoe.moe.corpora.sequences import draw_sequences
from lumoe.moe.measurement.residency import COLUMNS
from lumoe.moe.planning import caching_choice
from lumoe.moe.quantization.quantize import Recipe, quantize
from lumoe.resources import data_path

MODEL = data_path("models", "mini-mixtral")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Experts rounded to 4 bits, and two corpora."""
    folder = tmp_path_factory.mktemp("residency")
    corpora = []
    for name, line in (("first", "Return the sum of all {} values.\n"), ("second", "def f{}(x): return x + 1\n")):
        documents = [Document("".join(line.format(n * k) for k in range(40)), f"{name}{n}") for n in range(3)]
        write_corpus(folder / name, {"train": documents, "test": documents}, "\n\n", {})
        corpora.append(folder / name)
    quantize(Checkpoint(MODEL), draw_sequences(MODEL, corpora, 64, 32, 0), folder / "q", Recipe("rtn", 4, 64))
    return folder / "q", corpora


def test_the_command_writes_the_comparison_and_what_a_plan_reads(made: tuple[Path, list[Path]], tmp_path: Path) -> None:
    quantized, corpora = made
    arguments = ["residency", "--model", str(MODEL), "--quantized", str(quantized), "--bits", "4"]
    arguments += [word for corpus in corpora for word in ("--corpus", str(corpus))]
    arguments += ["--tokens", "64", "--sequence", "16", "--synthetic-tokens", "0", "--prefetch", "1"]
    arguments += ["--output", str(tmp_path / "r.csv"), "--summary", str(tmp_path / "s.csv"), "--threads", "1"]
    assert CliRunner().invoke(measure, arguments, catch_exceptions=False).exit_code == 0
    table = read_csv(tmp_path / "r.csv", COLUMNS)
    assert table["trace"].unique().tolist() == ["first", "second", "joined"]
    assert {*table["guesses"]} == {"none", "router", "transitions"}
    # At 4 bits in groups of 64: codes, and a scale and a zero point of 16 bits a group; memory is whole pages.
    least = 3 * 128 * 448 * (0.5 + 4 / 64)
    a_read = (table["bytes_read"] / table["experts_read"]).dropna()
    assert a_read.between(least, 1.2 * least).all()
    assert table["modelled_tokens_per_s"].isna().all()
    parts = table[table["trace"] != "joined"].groupby(["policy", "scope", "seed", "guesses", "resident_share"])
    fixed = parts["hit_rate"].mean()["frequency"]
    joined = table[(table["trace"] == "joined") & (table["policy"] == "frequency")]
    joined = joined.set_index(["scope", "seed", "guesses", "resident_share"])["hit_rate"]
    assert (fixed - joined).abs().max() < 1e-9
    read_csv(tmp_path / "s.csv", caching_choice.COLUMNS)
    wish = ["plan", "--model", str(MODEL), "--budget", "60%", "--prefer", "quality", "--json"]
    found = CliRunner().invoke(plan, [*wish, "--residency", str(tmp_path / "s.csv")], catch_exceptions=False)
    assert json.loads(found.output)["residency"]["policy"] in ("static", "lru", "lfru")


def test_more_guesses_than_experts_and_an_unknown_precision_are_refused(
    made: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    quantized, corpora = made
    arguments = ["residency", "--model", str(MODEL), "--quantized", str(quantized), "--corpus", str(corpora[0])]
    arguments += ["--output", str(tmp_path / "r.csv"), "--tokens", "64", "--sequence", "16"]
    with pytest.raises(UserError, match="prefetch: 9 experts of a layer that has 8"):
        CliRunner().invoke(measure, [*arguments, "--prefetch", "9"], catch_exceptions=False)
    with pytest.raises(UserError, match="3"):
        CliRunner().invoke(measure, [*arguments, "--bits", "3"], catch_exceptions=False)
    assert not (tmp_path / "r.csv").exists()

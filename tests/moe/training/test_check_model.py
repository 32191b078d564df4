"""A model's check: its numbers are its record's where nothing changed, and a change is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumoe.cli.model import app
from lumoe.cli.plot.training import app as plot_app
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.corpora.corpus import write_corpus
from lumoe.moe.corpora.docstrings import Document
from lumoe.moe.training.check_model import check_model, differences
from lumoe.moe.training.make_model import train_model
from lumoe.moe.training.train import TrainingSettings

SETTINGS = TrainingSettings(
    vocabulary=300,
    hidden=16,
    intermediate=32,
    layers=2,
    heads=2,
    key_value_heads=1,
    experts=4,
    sequence=16,
    batch=2,
    steps=30,
    learning_rate=5e-3,
    warmup=1,
    decay=0.5,
    weight_decay=0.0,
    balance=0.01,
    final_balance=0.01,
    seed=0,
)


def documents(count: int, offset: int) -> list[Document]:
    return [Document(f"document {i + offset} says that {i * i % 37} follows {i}", "here") for i in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "numbers"
    provenance = {"source": "package:numbers", "package": "numbers", "version": "1.0"}
    write_corpus(folder, {"train": documents(40, 0), "test": documents(20, 100)}, "\n\n", provenance)
    return folder


@pytest.fixture(scope="module")
def model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    train_model({"numbers": corpus}, folder, SETTINGS)
    return folder


def test_an_untouched_model_gives_its_recorded_numbers(model: Path, corpus: Path) -> None:
    found = check_model(model, {"numbers": corpus}, SETTINGS.sequence, 10_000)
    assert found["held_out"] == found["trained"]["held_out"]
    assert found["same_corpora"] == {"numbers": True}
    assert list(differences(model, {"numbers": corpus}, found["same_corpora"])) == []
    assert found["bytes"] == sum(file.stat().st_size for file in model.iterdir())


def test_fewer_windows_are_fewer_tokens(model: Path, corpus: Path) -> None:
    found = check_model(model, {"numbers": corpus}, SETTINGS.sequence, 3)
    assert found["held_out"]["numbers"]["tokens"] == 3 * (SETTINGS.sequence - 1)


def test_another_version_of_a_package_is_said_and_not_an_error(model: Path, tmp_path: Path) -> None:
    changed = tmp_path / "numbers"
    provenance = {"source": "package:numbers", "package": "numbers", "version": "2.0"}
    write_corpus(changed, {"train": documents(41, 0), "test": documents(20, 100)}, "\n\n", provenance)
    found = check_model(model, {"numbers": changed}, SETTINGS.sequence, 5)
    (sentence,) = differences(model, {"numbers": changed}, found["same_corpora"])
    assert "numbers 2.0 here and came from numbers 1.0" in sentence
    strange = {"other": changed}
    found = check_model(model, strange, SETTINGS.sequence, 5)
    (sentence,) = differences(model, strange, found["same_corpora"])
    assert "not one of those the model was trained on (numbers)" in sentence


def test_a_window_beyond_the_context_is_refused(model: Path, corpus: Path) -> None:
    with pytest.raises(UserError, match="windows of 17 tokens are longer than the 16"):
        check_model(model, {"numbers": corpus}, 17, 5)


def test_the_command_writes_the_check(model: Path, corpus: Path, tmp_path: Path) -> None:
    words = ["check", "--model", str(model), "--corpus", str(corpus), "--window", "16"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "model.json")])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "model.json").read_text())["model"] == model.name


def test_a_damaged_model_leaves_no_check(model: Path, corpus: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "tokenizer.json").write_text("{}")
    words = ["check", "--model", str(copy), "--corpus", str(corpus), "--window", "16"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "model.json")])
    assert isinstance(result.exception, UserError)
    assert not (tmp_path / "model.json").exists()


@pytest.mark.parametrize("figure", ["loss", "load"])
def test_figures_are_the_record_and_the_same_bytes(model: Path, tmp_path: Path, figure: str) -> None:
    for name in ("one", "two"):
        result = CliRunner().invoke(
            plot_app, [figure, "--model", str(model), "--output", str(tmp_path / name / "f.svg")]
        )
        assert result.exit_code == 0, result.output
    for suffix in ("svg", "png", "csv"):
        assert (tmp_path / "one" / f"f.{suffix}").read_bytes() == (tmp_path / "two" / f"f.{suffix}").read_bytes()
    table = read_csv(tmp_path / "one" / "f.csv")
    if figure == "loss":
        assert set(table["series"]) == {"training", "model", "trigram"}
        assert (table["series"] == "training").sum() == SETTINGS.steps
    else:
        assert table.groupby("layer")["fair_shares"].mean().tolist() == pytest.approx([1.0, 1.0], abs=1e-5)

"""What took hours to make is replaced only when that is asked for, and no folder of another kind ever is."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner

from lumoe.cli.model import app as model
from lumoe.cli.moe.evaluate import app as evaluate
from lumoe.cli.moe.quantize import app as quantize
from lumoe.errors import UserError
from lumoe.moe.training import make_model

MEASURING = [
    (evaluate, ["perplexity", "--model", ".", "--quantized", "q", "--corpus", "c", "--count", "1"]),
    (evaluate, ["sensitivity", "--model", ".", "--quantized", "q", "--corpus", "c"]),
    (evaluate, ["cross-check", "--model", ".", "--corpus", "c"]),
    (quantize, ["quantizers", "--model", ".", "--quantized", "q", "--corpus", "c"]),
]


@pytest.mark.parametrize(("app", "words"), MEASURING, ids=lambda value: value[0] if isinstance(value, list) else "")
def test_a_measured_table_is_not_replaced(app, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "table.csv"
    table.write_text("a,b\n1,2\n")
    refused = CliRunner().invoke(app, [*words, "--output", str(table)])
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception).startswith(f"{table}: is there already; choose another --output, or")
    # Forced, the command goes on to what it is to measure, and there is no such thing here.
    forced = CliRunner().invoke(app, [*words, "--output", str(table), "--force"])
    assert isinstance(forced.exception, UserError)
    assert str(table) not in str(forced.exception)
    assert table.read_text() == "a,b\n1,2\n"
    for more in ([], ["--force"]):
        on_folder = CliRunner().invoke(app, [*words, "--output", str(tmp_path), *more])
        assert f"{tmp_path}: is a folder; name a file" in str(on_folder.exception)
    assert table.exists()


def fetched(repository: str, local_dir: Path, allow_patterns: list[str]) -> None:
    Path(local_dir).mkdir()
    (Path(local_dir) / "config.json").write_text(repository)


def trained(corpora, output, settings, **_):  # type: ignore[no-untyped-def]
    output.mkdir(exist_ok=True)
    (output / "config.json").write_text("owner/new")
    return {"held_out": {"c": {"perplexity": 2.0}}, "least_expert_share": 1.0}


@pytest.mark.parametrize("words", [["fetch", "owner/new"], ["train", "--corpus", "c"]], ids=["fetch", "train"])
def test_a_model_is_replaced_only_when_forced(words, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.setattr(make_model, "train_model", trained)
    folder = tmp_path / "model"
    folder.mkdir()
    options = [*words, "--output", str(folder)]
    assert CliRunner().invoke(model, options, catch_exceptions=False).exit_code == 0, "an empty folder holds nothing"
    (folder / "config.json").write_text("hours of work")
    refused = CliRunner().invoke(model, options)
    assert f"{folder}: is there already; choose another --output, or replace it with --force" in str(refused.exception)
    assert (folder / "config.json").read_text() == "hours of work"
    assert CliRunner().invoke(model, [*options, "--force"], catch_exceptions=False).exit_code == 0
    assert (folder / "config.json").read_text() == "owner/new"
    (folder / "config.json").rename(folder / "thesis.tex")
    for more in ([], ["--force"]):
        refused = CliRunner().invoke(model, [*options, *more])
        assert f"{folder}: is there already, but not a folder with config.json" in str(refused.exception)
    assert (folder / "thesis.tex").exists()

"""A folder of quantised experts: of which weights it is, and that hours of work are not replaced unasked."""

from __future__ import annotations

import json
import logging
import shutil
from itertools import count
from pathlib import Path

import pytest
import torch
from gguf_models import write
from tiny_mixtral import TINY
from transformers import MixtralConfig, MixtralForCausalLM
from typer.testing import CliRunner

from lumoe.cli.moe.measure import app as measure
from lumoe.cli.moe.quantize import app
from lumoe.errors import UserError
from lumoe.files import read_sealed_json, write_sealed_json
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.corpora import sequences
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, open_on_device
from lumoe.moe.offload.file_experts import expert_bytes
from lumoe.moe.quantization.folder import QuantizedExperts, read_frequencies
from lumoe.moe.quantization.quantize import Recipe, quantize

TOKENS = torch.randint(0, 96, (4, 32), generator=torch.Generator().manual_seed(7))
RECIPE = Recipe("rtn", 4, 32)


@pytest.fixture(scope="session")
def retrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the shape of `model_bf16`, with other weights."""
    folder = tmp_path_factory.mktemp("retrained")
    torch.manual_seed(99)
    MixtralForCausalLM(MixtralConfig(**TINY)).to(torch.bfloat16).save_pretrained(folder)
    return folder


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}


def test_experts_of_other_weights_are_refused(
    model_bf16: Path, quantized: dict[int, Path], retrained: Path, tmp_path: Path
) -> None:
    folder = quantized[4]
    refusal = f"{folder}: its experts were made of other weights than those of {retrained}; quantise .* --force"
    with pytest.raises(UserError, match=refusal):
        Engine.load(retrained, folder)
    with pytest.raises(UserError, match=refusal):
        open_on_device(Checkpoint(retrained), [QuantizedExperts(folder)], EngineConfig())
    with pytest.raises(UserError, match=refusal):
        expert_bytes(retrained, folder, [4])
    options = ["--quantized", str(folder), "--corpus", "none", "--output", str(tmp_path / "residency.csv")]
    assert refusal.split(";")[0] in str(
        CliRunner().invoke(measure, ["residency", "--model", str(retrained), *options]).exception
    )
    moved = shutil.copytree(model_bf16, tmp_path / "moved")
    assert Engine.load(moved, folder).memory.expert[4] > 0


def test_experts_of_a_gguf_file_are_its_own(
    model_bf16: Path, quantized: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write(model_bf16, tmp_path / "model.gguf", "F16")
    with pytest.raises(UserError, match="other weights"):
        Engine.load(model, quantized[4])
    quantize(Checkpoint(model), TOKENS, tmp_path / "q", RECIPE)
    assert 4 in Engine.load(model.rename(tmp_path / "moved.gguf"), tmp_path / "q").memory.expert


def test_a_folder_that_does_not_name_its_weights_is_read_with_a_warning(
    model_bf16: Path, quantized: dict[int, Path], retrained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(quantized[4], tmp_path / "old"))
    manifest = read_sealed_json(folder / "manifest.json")
    del manifest["weights"]
    write_sealed_json(folder / "manifest.json", manifest | {"format": 2})
    with caplog.at_level(logging.WARNING):
        Engine.load(model_bf16, folder)
    assert f"{folder}: made by an earlier version" in caplog.text
    write_sealed_json(folder / "manifest.json", manifest | {"format": 3})
    with pytest.raises(UserError, match=r"not a manifest that this version reads \('weights'\)"):
        Engine.load(model_bf16, folder)
    write_sealed_json(folder / "manifest.json", manifest | {"format": 4})
    with pytest.raises(UserError, match="format 4"):
        Engine.load(model_bf16, folder)


def test_a_finished_folder_is_left_as_it_is(model_bf16: Path, retrained: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(model_bf16)
    table = quantize(checkpoint, TOKENS, tmp_path, RECIPE)
    before = content(tmp_path)
    said: list[str] = []
    for force in (False, True):
        again = quantize(checkpoint, TOKENS, tmp_path, RECIPE, said.append, force)
        assert again.equals(table)
        assert content(tmp_path) == before
    assert said == [f"{tmp_path}: finished already, in the same way; nothing to do"] * 2
    for model, tokens, recipe, words in [
        (model_bf16, TOKENS, Recipe("rtn", 2, 32), r"\(bits 4, not 2\)"),
        (model_bf16, TOKENS, Recipe("nf4", 4, 64), r"\(method rtn, not nf4; group_size 32, not 64\)"),
        (model_bf16, TOKENS[:, 1:], RECIPE, r"\(other calibration tokens: .*\)"),
        (retrained, TOKENS, RECIPE, r"\(of other weights than the model's\)"),
    ]:
        with pytest.raises(
            UserError, match=rf"{tmp_path}: holds a finished quantisation made another way {words}; .*--force"
        ):
            quantize(Checkpoint(model), tokens, tmp_path, recipe)
        assert content(tmp_path) == before
    assert (quantize(checkpoint, TOKENS, tmp_path, Recipe("rtn", 3, 32), force=True)["bits"] == 3).all()
    assert QuantizedExperts(tmp_path).bits == 3
    assert len(list(tmp_path.iterdir())) == 12 + 2


def test_a_forced_replacement_that_is_cut_off_does_not_read_as_finished(model_bf16: Path, tmp_path: Path) -> None:
    checkpoint, steps = Checkpoint(model_bf16), count(1)
    quantize(checkpoint, TOKENS, tmp_path, RECIPE)

    def stop(_: str) -> None:
        if next(steps) == 5:
            raise KeyboardInterrupt

    other = Recipe("rtn", 3, 32)
    with pytest.raises(KeyboardInterrupt):
        quantize(checkpoint, TOKENS, tmp_path, other, stop, force=True)
    for read in (QuantizedExperts, read_frequencies):
        with pytest.raises(UserError, match=r"manifest.json: no such file"):
            read(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5
    with pytest.raises(UserError, match=r"quantisation of 5 experts, not finished, made another way \(bits 3, not 4\)"):
        quantize(checkpoint, TOKENS, tmp_path, RECIPE)
    # What was begun goes on without being forced again.
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    quantize(checkpoint, TOKENS, tmp_path, other)
    assert all(path.stat().st_mtime_ns == changed for path, changed in kept.items())
    assert QuantizedExperts(tmp_path).dequantized(2, 3, "w1").shape == (128, 64)


def test_a_manifest_that_was_lost_is_made_of_the_experts(model_bf16: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(model_bf16)
    quantize(checkpoint, TOKENS, tmp_path, RECIPE)
    whole = content(tmp_path)
    for name in ("manifest.json", "experts.csv"):
        (tmp_path / name).unlink()
        quantize(checkpoint, TOKENS, tmp_path, RECIPE)
        now = content(tmp_path)
        assert {name: data for name, (_, data) in now.items()} == {name: data for name, (_, data) in whole.items()}
        assert now["layer-00-expert-00.safetensors"] == whole["layer-00-expert-00.safetensors"]


def test_what_an_earlier_version_made_is_not_taken_for_the_same(model_bf16: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(model_bf16)
    quantize(checkpoint, TOKENS, tmp_path, RECIPE)
    manifest = read_sealed_json(tmp_path / "manifest.json")
    recipe = {name: manifest[name] for name in ("method", "bits", "group_size", "least_tokens")}
    key = json.dumps([recipe, manifest["calibration"], ["a hash"]])
    write_sealed_json(tmp_path / "manifest.json", manifest | {"format": 2, "key": key})
    with pytest.raises(UserError, match="by an earlier version, which did not record of which weights"):
        quantize(checkpoint, TOKENS, tmp_path, RECIPE)
    with pytest.raises(UserError, match="bits 4, not 8"):
        quantize(checkpoint, TOKENS, tmp_path, Recipe("rtn", 8, 32))


def test_a_folder_of_something_else_is_never_written_to(model_bf16: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(model_bf16, tmp_path / "model"))
    (model / "manifest.json").write_text('{"sha256": {}}')
    before = content(model)
    for force in (False, True):
        with pytest.raises(UserError, match=f"{model}: there is a manifest.json, but not of quantised experts"):
            quantize(Checkpoint(model_bf16), TOKENS, model, RECIPE, force=force)
        assert content(model) == before


def test_an_output_that_is_a_file_is_left_alone(model_bf16: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("kept")
    for output in (tmp_path / "notes", tmp_path / "notes" / "q"):
        with pytest.raises(UserError, match=f"{output}: no folder can be made there"):
            quantize(Checkpoint(model_bf16), TOKENS, output, RECIPE, force=True)
    assert (tmp_path / "notes").read_text() == "kept"


def test_an_own_quantiser_that_was_edited_is_another(
    model_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "from lumoe.moe.kernels.affine import nearest\ndef f(weight, inputs, bits, group_size):\n    return {}\n"
    file = tmp_path / "edited_quantiser.py"
    monkeypatch.chdir(tmp_path)
    file.write_text(code.format("nearest(weight, bits, group_size)"))
    recipe = Recipe("edited_quantiser:f", 4, 32)
    quantize(Checkpoint(model_bf16), TOKENS, tmp_path / "q", recipe)
    file.write_text(code.format("None"))
    with pytest.raises(UserError, match="with other code of the quantiser"):
        quantize(Checkpoint(model_bf16), TOKENS, tmp_path / "q", recipe)


def test_the_command_refuses_and_replaces(model_bf16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequences, "draw_sequences", lambda *_: TOKENS)
    options = ["quantize", "--model", str(model_bf16), "--corpus", "any", "--method", "rtn", "--group-size", "32"]
    options += ["--output", str(tmp_path / "q"), "--bits"]
    assert "12 experts at 4 bits" in CliRunner().invoke(app, [*options, "4"]).output
    again = CliRunner().invoke(app, [*options, "4"])
    assert (again.exit_code, "finished already" in again.stderr) == (0, True)
    refused = CliRunner().invoke(app, [*options, "2"])
    assert isinstance(refused.exception, UserError)
    assert "bits 4, not 2" in str(refused.exception)
    assert CliRunner().invoke(app, [*options, "2", "--force"]).exit_code == 0
    assert QuantizedExperts(tmp_path / "q").bits == 2

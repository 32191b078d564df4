"""Shipped numbers and weights are those that were shipped, or the file is named and nothing is computed from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_model import make_model
from typer.testing import CliRunner

from lumoe import resources
from lumoe.cli.model import app
from lumoe.errors import UserError
from lumoe.files import read_csv, read_json, read_yaml
from lumoe.moe.checkpoint.manifest import verify_manifest
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.planning.hardware import read_hardware
from lumoe.photonics.devices import load_devices
from lumoe.resources import SUMS, data_path, data_sums

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data folder that the package takes for its own."""
    copy = Path(shutil.copytree(ROOT / "data", tmp_path / "data"))
    monkeypatch.setattr(resources, "files", lambda _: copy)
    resources._root.cache_clear()
    resources._recorded.cache_clear()
    yield copy
    resources._root.cache_clear()
    resources._recorded.cache_clear()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_sums_are_those_of_the_files() -> None:
    assert (ROOT / "data" / SUMS).read_text(encoding="ascii") == data_sums(ROOT / "data"), "run `lumoe config write`"


def test_every_data_file_has_a_sum_and_every_model_a_manifest() -> None:
    named = {line.split("  ")[1] for line in (ROOT / "data" / SUMS).read_text(encoding="ascii").splitlines()}
    tables = {path.relative_to(ROOT / "data").as_posix() for path in (ROOT / "data").rglob("*.[cy][sa][vm]*")}
    assert {name for name in tables - named if not name.startswith("models/")} == set()
    for model in (path for path in (ROOT / "data/models").iterdir() if path.is_dir()):
        verify_manifest(model)


@pytest.mark.parametrize("name", ["devices/aggressive.yaml", "baselines.csv", "hardware/a100-80gb.yaml"])
def test_a_flipped_bit_in_a_shipped_file_is_named(data: Path, name: str) -> None:
    reader = read_csv if name.endswith("csv") else read_yaml
    reader(data_path(*name.split("/")))
    flip(data / name)
    with pytest.raises(UserError, match=rf"{name}: not the file that was shipped"):
        reader(data_path(*name.split("/")))
    read = {"devices/aggressive.yaml": load_devices, "hardware/a100-80gb.yaml": read_hardware}.get(name)
    if read:
        with pytest.raises(UserError, match="not the file that was shipped"):
            read(Path(name).stem)


def test_a_file_of_ones_own_beside_them_is_read(data: Path) -> None:
    (data / "mine.yaml").write_text("a: 1\n", encoding="utf-8")
    assert read_yaml(data / "mine.yaml") == {"a": 1}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "manifest.json"])
def test_a_flipped_bit_in_the_shipped_model_is_named(data: Path, name: str) -> None:
    folder = data / "models" / "mini-mixtral"
    Checkpoint(folder)
    flip(folder / name)
    for read in (Checkpoint, load_tokenizer):
        with pytest.raises(UserError, match=rf"{name}: (its SHA-256|not the file that was shipped)"):
            read(folder)


def test_sums_that_cannot_be_read_are_named(data: Path) -> None:
    (data / SUMS).write_text("nonsense\n", encoding="ascii")
    with pytest.raises(UserError, match=rf"{SUMS}: the sums of the shipped data cannot be read"):
        read_json(data / "models" / "mini-mixtral" / "manifest.json")


def test_a_model_of_ones_own_can_be_recorded(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    found = CliRunner().invoke(app, ["record", str(folder)])
    assert found.exit_code == 0, found.output
    Checkpoint(folder)
    flip(folder / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: its SHA-256"):
        Checkpoint(folder)

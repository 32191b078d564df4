"""Shipped shapes of models that people run: their totals are the published ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumoe.files import read_yaml
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.inputs import Known
from lumoe.resources import data_path

SHAPES = sorted(path.stem for path in data_path("shapes").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in SHAPES if name != "mixtral-8x7b"])
def test_parameters_add_up_to_the_published_total(name: str) -> None:
    shape = read_shape(name)
    published = float(read_yaml(data_path("shapes", f"{name}.yaml"))["parameters"])
    total = shape.non_expert_parameters + shape.experts * shape.expert_parameters
    assert total == pytest.approx(published, rel=0.005)


def test_latent_attention_keeps_one_vector_a_token() -> None:
    """DeepSeek-V3: 512 + 64 values in each of 61 layers, 2 bytes each (arXiv 2412.19437), in whole pages a block."""
    shape = read_shape("deepseek-v3")
    assert shape.kv_block_bytes() == pytest.approx(16 * 61 * (512 + 64) * 2, abs=4096)


def test_a_name_keeps_its_dots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Known.find("granite-3.0-1b-a400m").hardware is None
    machine = Path("results/moe/granite-3.0-1b-a400m/machine.json")
    machine.parent.mkdir(parents=True)
    machine.write_text("{}")
    assert Known.find("granite-3.0-1b-a400m").hardware == str(machine)

"""Estimates of whole networks: what they cover, and what they say of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from lumoe.cli.photonics import app
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.accelerators.registry import ACCELERATORS
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.network.trace import trace
from lumoe.photonics.simulation.comparison import comparison
from lumoe.photonics.studies.estimate import coverage_notes, estimate_table


class Mixture(nn.Module):
    """A convolution of patches, of a volume and of a line, each run by the simulation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.line, self.volume = nn.Conv2d(4, 8, 3), nn.Conv1d(8, 8, 3), nn.Conv3d(8, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        image = self.patch(x.unfold(2, 20, 20).permute(0, 2, 1, 4, 3).reshape(-1, 4, 20, 20))
        return self.line(image.flatten(2)).sum() + self.volume(image.movedim(0, 1)[None]).sum()


@pytest.mark.parametrize("design", ACCELERATORS)
def test_convolutions_alone_are_what_they_are_in_the_whole(design: str) -> None:
    network, point = load_network("alexnet"), DesignPoint.named(design)
    tables = {}
    for scope in ("whole", "convolutions"):
        layers = network.scope(scope)
        tables[scope] = estimate_table(network, point.evaluate(convolution_shapes(layers)), layers).set_index("layer")
    for name in (layer.name for layer in network.convolutions()):
        assert tables["whole"].loc[name].equals(tables["convolutions"].loc[name])
    # 61 million weights, of one byte here: DRAM bounds the linear layers (Krizhevsky et al. 2012).
    assert tables["whole"].loc["all", "weights"] == pytest.approx(61e6, rel=0.005)
    assert tables["whole"].loc["all", "macs"] == pytest.approx(724e6, rel=0.005)
    assert tables["whole"].loc["fc6", "time_s"] >= 9216 * 4096 / point.devices.si("dram_bandwidth")
    assert math.isnan(tables["whole"].loc["all", "speedup"])
    assert 0 < tables["whole"].loc["all", "utilisation"] <= 1


def test_what_is_left_out_is_said_with_what_dram_would_take() -> None:
    network = load_network("alexnet")
    said = coverage_notes(network, network.convolutions(), DesignPoint.named("winograd"))
    # fc6, fc7 and fc8 at 25.6 GB/s and one byte a weight.
    assert f"takes {(9216 + 4096 + 1000) * 4096 / 25.6e9 * 1e6:.3g} us more" in said[1]
    assert (
        len(coverage_notes(network, network.convolutions(), DesignPoint.named("winograd", choices=["memory=0"]))) == 1
    )
    assert len(coverage_notes(network, network.scope("whole"), DesignPoint.named("winograd"))) == 1


@pytest.mark.parametrize("design", ACCELERATORS)
def test_every_dimension_of_convolution_agrees_with_the_simulation(design: str) -> None:
    network = trace(Mixture().to("meta"), (4, 60, 20), "mixture")
    assert [layer.images for layer in network.convolutions()] == [3, 3, 1]
    table = comparison(network, DesignPoint.named(design), depth=256, caches_kb=[math.inf])
    # Layers this small take up to a thirtieth of their time to fill the stages.
    assert table["difference"].abs().max() < 0.04


NET = """
from torch import nn
class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    def forward(self, tokens):
        return self.layer(self.embed(tokens))
"""


@pytest.mark.parametrize("design", ACCELERATORS)
def test_the_command_estimates_a_network_without_convolutions(
    design: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"attends_{design}.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    network = ["--network", f"attends_{design}:Attends", "--input", "tokens:1x6:int64"]
    asked = ["estimate", *network, "--design", design]
    result = CliRunner().invoke(app, [*asked, "--output", "all.csv"])
    assert result.exit_code == 0, result.output
    assert f"attends_{design}:Attends: the estimate covers 100 % of the multiply-accumulates" in result.stderr
    table = read_csv(tmp_path / "all.csv").set_index("layer")
    assert table.loc["all", "weights"] == 8 * (24 + 8 + 16 + 16)
    # Scores and values: 6 x 6 products of 4 numbers in each of 2 heads, twice.
    assert table.loc["all", "macs"] == 6 * 8 * (24 + 8 + 16 + 16) + 2 * 2 * 6 * 6 * 4
    refused = CliRunner().invoke(app, [*asked, "--scope", "convolutions"])
    assert isinstance(refused.exception, UserError)
    assert "no convolution layer" in str(refused.exception)
    # A traced file has its inputs.
    assert CliRunner().invoke(app, ["trace", *network, "--output", "."]).exit_code == 0
    again = CliRunner().invoke(app, ["estimate", "--network", f"attends_{design}:Attends.json", "--design", design])
    assert again.exit_code == 0, again.output
    assert torch.is_grad_enabled()

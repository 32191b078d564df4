"""Every tracked figure is drawn again, byte for byte, from the table that is shipped beside it."""

from __future__ import annotations

import shlex
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from click.testing import CliRunner
from typer.main import get_command

from lumoe.cli import plot
from lumoe.plots.style import save, use_style

FIGURES = Path(__file__).parents[2] / "figures"
# These two are drawn from the shipped model's own record.
MODEL = "--model data/models/mini-mixtral"
OWN_TABLE = {
    "accuracy": "physics accuracy",
    "detector_bits": "physics detector-bits",
    "moe-pareto": "moe pareto",
    "moe-throughput-memory": "moe throughput-memory",
    "pcnna-batches": "photonics batches",
    "pcnna-resources": "photonics resources",
    "pcnna-speedup": "photonics pcnna",
    "pcnna-waterfall": "photonics waterfall",
    "photonics-pareto": "photonics exploration",
    "pipeline-stall": "photonics stall",
    "ring_spectrum": "physics ring-spectrum",
    "weight_errors": "physics weight-errors",
    "winograd": "photonics winograd",
    "winograd-power": "photonics winograd-power",
}
COMMANDS = {
    **{name: f"{command} --table figures/{name}.csv" for name, command in OWN_TABLE.items()},
    **{
        f"uncertainty-{claim}": f"photonics tornado --table figures/uncertainty-{claim}.csv --claim {claim}"
        for claim in (
            "pcnna-full-system",
            "pcnna-optical-core",
            "winograd-efficiency",
            "winograd-power",
            "winograd-speed",
        )
    },
    "training-loss": f"training loss {MODEL}",
    "expert-load": f"training load {MODEL}",
}


def test_no_figure_is_forgotten() -> None:
    assert sorted(COMMANDS) == sorted(path.stem for path in FIGURES.glob("*.svg"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_figure_is_drawn_again_from_its_own_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIGURES.parent)
    again = tmp_path / f"{name}.svg"
    done = CliRunner().invoke(get_command(plot.app), [*shlex.split(COMMANDS[name]), "--output", str(again)])
    assert done.exit_code == 0, done.output
    for suffix in (".svg", ".png", ".csv"):
        assert again.with_suffix(suffix).read_bytes() == (FIGURES / name).with_suffix(suffix).read_bytes(), suffix


def test_the_last_digits_of_a_layout_are_not_seen(tmp_path: Path) -> None:
    """The solver of layouts adds up in an order that depends on addresses; here it is given the noise on purpose."""
    saved = []
    for noise in (0.0, 1e-15):
        use_style()
        figure, axes = plt.subplots(1, 2)
        figure.set_layout_engine("constrained", rect=(0, 0, 1, 1 - noise))
        for panel in axes:
            panel.plot([0, 1], [2, 3])
            panel.set_ylabel("speed [m/s]")
        save(figure, tmp_path / "figure.svg", pd.DataFrame({"x": [0, 1]}))
        saved.append([(tmp_path / f"figure{suffix}").read_bytes() for suffix in (".svg", ".png")])
    assert saved[0] == saved[1]

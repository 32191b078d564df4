"""The row of the whole network: what adds up, what does not, and what is missing."""

from __future__ import annotations

import numpy as np
import pandas as pd

from lumoe.photonics.studies.totals import with_rates, with_total

LAYERS = pd.DataFrame(
    {
        "layer": ["a", "b"],
        "limit": ["sram", "dram"],
        "macs": [1e9, 3e9],
        "time_s": [1.0, 3.0],
        "baseline_s": [8.0, 8.0],
        "energy_laser_j": [0.5, 0.25],
        "energy_sram_j": [0.5, 2.75],
        "area_rings_mm2": [2.0, 1.0],
        "area_sram_mm2": [1.0, 4.0],
        "bits": [5.0, 4.0],
        "lost": [0.5, 0.25],
    }
)


def test_the_network_is_its_layers_one_after_another() -> None:
    whole = with_total(LAYERS, greatest=["lost"], least=["bits"]).set_index("layer").loc["all"]
    assert whole[["macs", "time_s", "baseline_s", "energy_laser_j"]].tolist() == [4e9, 4.0, 16.0, 0.75]
    assert whole[["area_rings_mm2", "area_sram_mm2", "bits", "lost", "limit"]].tolist() == [2, 4, 4, 0.5, "dram"]


def test_rates_follow_from_the_parts() -> None:
    table = with_rates(with_total(LAYERS, least=["bits"])).set_index("layer")
    assert table["energy_j"].tolist() == [1.0, 3.0, 4.0]
    assert table["power_w"].tolist() == [1.0, 1.0, 1.0]
    assert table["gop_per_s"].tolist() == [2.0, 2.0, 2.0]
    assert table["area_mm2"].tolist() == [3.0, 5.0, 6.0]
    assert table["speedup"].round(12).tolist() == [8.0, round(8 / 3, 12), 4.0]


def test_a_total_that_lacks_one_layer_is_missing() -> None:
    table = with_rates(with_total(LAYERS.assign(baseline_s=[8.0, np.nan]), least=["bits"])).set_index("layer")
    assert np.isnan(table.loc["all", ["baseline_s", "speedup"]].astype(float)).all()
    assert table.loc["a", "speedup"] == 8.0

"""Published electronic accelerators: the tables agree with themselves and with the traced networks."""

from __future__ import annotations

import pytest

from lumoe.files import read_csv
from lumoe.photonics.network.load import load_network
from lumoe.photonics.studies.baselines import eyeriss_layers, platforms
from lumoe.resources import data_path


@pytest.mark.parametrize(("network", "platform"), [("alexnet", "AlexNet"), ("vgg16", "VGG16")])
def test_eyeriss_layers_add_up_to_its_platform_row(network: str, platform: str) -> None:
    traced = load_network(network)
    layers = eyeriss_layers(traced)
    row = platforms().set_index("name").loc[f"Eyeriss, {platform} conv"]
    assert layers["total_s"].sum() * row["batch"] == pytest.approx(row["latency_ms_per_batch"] * 1e-3, rel=0.001)
    assert layers["energy_j"].sum() / layers["total_s"].sum() == pytest.approx(row["power_w"], rel=0.03)
    macs = sum(layer.macs for layer in traced.convolutions())
    assert 2e-9 * macs / layers["total_s"].sum() == pytest.approx(row["gop_per_s"], rel=0.01)
    assert (layers["processing_s"] <= layers["total_s"]).all()


@pytest.mark.parametrize(("network", "name"), [("alexnet", "AlexNet"), ("vgg16", "VGG16")])
def test_eyeriss_counted_the_multiplications_that_are_traced(network: str, name: str) -> None:
    table = read_csv(data_path("eyeriss_layers.csv"))
    rows = table[table["network"] == name].set_index("layer")
    for layer in load_network(network).convolutions():
        # The published counts are for a batch and have two decimals.
        assert layer.macs * rows.loc[layer.name, "batch"] * 1e-9 == pytest.approx(
            rows.loc[layer.name, "gmac"], abs=0.006
        )


def test_every_row_says_where_it_is_from() -> None:
    for name in ("baselines.csv", "eyeriss_layers.csv"):
        table = read_csv(data_path(name), ["source", "confidence"])
        assert table[["source", "confidence"]].notna().all().all()


def test_a_network_that_eyeriss_never_ran_has_no_numbers() -> None:
    network = load_network("resnet18")
    layers = eyeriss_layers(network)
    assert layers.index.tolist() == [layer.name for layer in network.convolutions()]
    assert layers.isna().all().all()

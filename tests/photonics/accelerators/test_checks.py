"""What an architect may type, and that the lists of needed parameters are those that the models read."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lumoe.errors import UserError
from lumoe.photonics.accelerators import feasibility, pcnna, winograd
from lumoe.photonics.accelerators.checks import require_counts, require_known, require_rates, require_switches
from lumoe.photonics.accelerators.design_point import DesignPoint
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes


class Recorded(dict[str, float]):
    """Values that remember which of them were read."""

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return super().__getitem__(name)


@pytest.mark.parametrize(("name", "model"), [("pcnna", pcnna), ("winograd", winograd)])
def test_the_needed_parameters_are_those_that_the_model_reads(name: str, model) -> None:
    point = DesignPoint.named(name)
    values = Recorded(point.devices.values())
    shapes = convolution_shapes(load_network("alexnet").convolutions())
    point.accelerator.evaluate(shapes, values, point.choices)
    beside = {"adc_bits", "weight_bits", "data_bits"}
    assert values.read == {*model.NEEDS.names, *feasibility.NEEDS.names} | (beside if name == "pcnna" else set())


@pytest.mark.parametrize(("name", "devices"), [("pcnna", "moderate"), ("winograd", "pcnna"), ("pcnna", "common")])
def test_a_device_set_of_another_design_is_refused(name: str, devices: str) -> None:
    shapes = convolution_shapes(load_network("alexnet").convolutions())
    with pytest.raises(
        UserError, match=r"the device set lacks '.+', which (PCNNA|the Winograd accelerator|the link budget) needs"
    ):
        DesignPoint.named(name, devices).evaluate(shapes)


@pytest.mark.parametrize("value", [0, -1, 0.5, 2.5, math.inf, math.nan])
def test_counts_are_whole(value: float) -> None:
    with pytest.raises(UserError, match=r"dacs is .*must be a whole number of at least 1"):
        require_counts({"dacs": value}, ["dacs"])
    with pytest.raises(UserError):
        require_counts({"dacs": np.array([1.0, value])}, ["dacs"])


def test_a_count_may_be_endless_where_that_is_said() -> None:
    require_counts({"channels": np.array([1.0, math.inf])}, ["channels"], endless=True)
    with pytest.raises(UserError):
        require_counts({"channels": math.nan}, ["channels"], endless=True)


@pytest.mark.parametrize("value", [0.5, 7, -1, math.nan])
def test_switches_are_on_or_off(value: float) -> None:
    require_switches({"memory": np.array([0.0, 1.0])}, ["memory"])
    with pytest.raises(UserError, match=r"memory is .*must be 0 \(off\) or 1 \(on\)"):
        require_switches({"memory": value}, ["memory"])


def test_rates_are_positive_and_known() -> None:
    with pytest.raises(UserError, match="clock is 0, but must be positive"):
        require_rates({"clock": np.array([1e9, 0.0])}, ["clock"])
    with pytest.raises(UserError, match="lacks 'clock', which PCNNA needs"):
        require_known({}, ["clock"], "PCNNA")

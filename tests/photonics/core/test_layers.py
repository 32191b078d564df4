from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lumoe.photonics.core.core import Core, hold
from lumoe.photonics.core.layers import PhotonicConv2d, PhotonicLinear, photonic_layers, reseed, set_core, to_photonic
from lumoe.photonics.core.product import Light, multiply
from lumoe.photonics.core.readout import Draw
from lumoe.photonics.physics.parameters import Physics, load_physics


@pytest.fixture(scope="module")
def physics() -> Physics:
    return load_physics("moderate")


@settings(max_examples=30)
@given(data=st.data())
def test_ideal_core_is_the_exact_convolution(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 2, 4]), "groups")
    layer = nn.Conv2d(
        4 * data.draw(st.integers(1, 2)),
        4 * data.draw(st.integers(1, 2)),
        (data.draw(st.integers(1, 4), "rows"), data.draw(st.integers(1, 4), "columns")),
        stride=(data.draw(st.integers(1, 3), "down"), data.draw(st.integers(1, 3), "across")),
        padding=data.draw(st.integers(0, 2), "padding"),
        dilation=data.draw(st.integers(1, 2), "dilation"),
        groups=groups,
        bias=data.draw(st.booleans(), "bias"),
        padding_mode=data.draw(st.sampled_from(["zeros", "reflect", "circular"]), "mode"),
    ).double()
    images = torch.randn(2, layer.in_channels, 9, 11, dtype=torch.float64)
    core = Core.ideal(load_physics("moderate"), data.draw(st.integers(1, 12), "channels"))
    expected = layer(images)
    for tile in (None, 2):
        got = to_photonic(layer, core, tile=tile)(images)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_ideal_linear_is_exact(physics: Physics, shape: tuple[int, ...]) -> None:
    layer = nn.Linear(5, 7).double()
    rows = torch.randn(*shape, dtype=torch.float64)
    torch.testing.assert_close(to_photonic(layer, Core.ideal(physics, 2))(rows), layer(rows), rtol=1e-9, atol=1e-12)


def test_unbatched_images_and_batches_agree(physics: Physics) -> None:
    layer = to_photonic(nn.Conv2d(3, 4, 3), Core.ideal(physics, 8))
    image = torch.randn(3, 6, 6)
    torch.testing.assert_close(layer(image), layer(image[None])[0])


def test_a_whole_model_is_replaced_and_the_original_is_not_touched(physics: Physics) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(144, 10)))
    noisy = to_photonic(model, physics, channels=16)
    assert [type(layer) for layer in photonic_layers(noisy)] == [PhotonicConv2d, PhotonicLinear]
    assert not photonic_layers(model)
    assert noisy.state_dict().keys() == model.state_dict().keys()
    assert noisy(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_the_same_seed_gives_the_same_numbers(physics: Physics) -> None:
    layer = nn.Conv2d(3, 4, 3)
    images = torch.rand(2, 3, 9, 9)
    first, again, other = (to_photonic(layer, physics, channels=16, seed=seed)(images) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model = to_photonic(layer, physics, channels=16, seed=1)
    model(images)
    assert not torch.equal(model(images), first)
    reseed(model, 1)
    assert torch.equal(model(images), first)
    assert torch.equal(copy.deepcopy(model)(images), first)


def test_each_imperfection_costs_accuracy(physics: Physics) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(8, 16, 3), torch.rand(2, 8, 12, 12)
    expected = layer(images).detach()

    def error(**changes: object) -> float:
        core = Core(physics=physics, channels=13, **changes)  # type: ignore[arg-type]
        return float((to_photonic(layer, core)(images).detach() - expected).pow(2).mean().sqrt())

    assert error() < 1e-6
    for name, mild, severe in [
        ("weight_bits", 8, 4),
        ("input_bits", 8, 4),
        ("detector_bits", 8, 4),
        ("noise", 0.5, 2.0),
        ("noise_floor", 1e-3, 1e-2),
    ]:
        assert 1e-6 < error(**{name: mild}) < error(**{name: severe})
    assert error(rings="calibrated") < 1e-4 < error(rings="calibrated", drift_k=0.05)
    assert error(rings="uncalibrated") > 1e-2
    assert error(rings="uncalibrated", trim_error=0.01) > error(rings="uncalibrated")


def test_detector_noise_has_the_variance_of_the_balanced_pair(physics: Physics) -> None:
    """A dark input: what is left is dark current and thermal noise of both diodes, over one channel's current."""
    core = Core(physics=physics, channels=8, noise=1.0)
    layer = PhotonicLinear(8, 1, bias=False, core=core)
    nn.init.ones_(layer.weight)
    rows = torch.zeros(20_000, 8)
    rows[0] = 1.0  # sets the scale
    constant, shot, _ = core.noise_terms(1)
    got = layer(rows).detach()[1:]
    assert float(got.std()) == pytest.approx(math.sqrt(constant), rel=0.03)
    assert shot > 0


@pytest.mark.parametrize("locations", [2, 3, 4, 7, 9, 16, 36, 64])
def test_the_range_of_the_detectors_sees_every_place_of_an_image(physics: Physics, locations: int) -> None:
    """Only one location of each image is bright: a fixed stride over images and locations may never meet it."""
    core = Core(physics=physics, channels=4, detector_bits=8)
    held = hold(torch.ones(1, 8, 4), core)
    for bright in range(locations):
        power = torch.full((1, 4, 4000 * locations), 0.01)
        power[..., bright::locations] = 1.0
        _, scale = multiply(held, Light(power, signed=False), core, Draw(0), input_scale=torch.ones(1))
        assert float(scale) == pytest.approx(4.0)


@pytest.mark.parametrize("images", [20, 100, 500])
def test_tiles_of_small_images_are_not_clipped(physics: Physics, images: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    centred = torch.rand(images, 1, 8, 8)
    centred[..., (0, 1, 6, 7)] *= 0.1
    centred[..., (0, 1, 6, 7), :] *= 0.1
    core = Core(physics=physics, channels=16, detector_bits=8)
    expected = layer(centred)
    error = (to_photonic(layer, core, tile=2)(centred) - expected).pow(2).mean() / expected.pow(2).mean()
    assert float(error.detach().sqrt()) < 0.03


def test_a_modulators_leak_is_taken_off_again(physics: Physics) -> None:
    layer, images = nn.Conv2d(3, 5, 3).double(), torch.rand(1, 3, 6, 6, dtype=torch.float64)
    core = Core(physics=physics, channels=4, extinction_db=10)
    torch.testing.assert_close(to_photonic(layer, core)(images), layer(images))


def test_gradients_are_those_of_the_exact_layer(physics: Physics) -> None:
    layer, images = nn.Conv2d(3, 4, 3, padding=1), torch.rand(2, 3, 6, 6, requires_grad=True)
    noisy = to_photonic(layer, physics, channels=16)
    noisy(images).sum().backward()
    through_core, weights = images.grad, noisy.weight.grad
    images.grad = None
    layer(images).sum().backward()
    torch.testing.assert_close(through_core, images.grad)
    torch.testing.assert_close(weights, layer.weight.grad)


def test_a_step_of_training_reaches_the_rings(physics: Physics) -> None:
    model = to_photonic(nn.Linear(6, 3), physics, channels=6, noise=0.0)
    rows = torch.rand(4, 6)
    before = model(rows).detach()
    with torch.no_grad():
        model.weight.mul_(-1.0)
    torch.testing.assert_close(model(rows) - model.bias, -(before - model.bias), rtol=0, atol=0.05)


def test_groups_have_their_own_range_where_asked(physics: Physics) -> None:
    weight = torch.stack([torch.ones(2, 3), 100 * torch.ones(2, 3)])
    assert hold(weight, Core.ideal(physics, 4)).scale.tolist() == [1.0, 100.0]
    assert hold(weight, Core(physics=physics, channels=4, per_group=False)).scale.tolist() == [100.0, 100.0]


def test_settings_change_in_place(physics: Physics) -> None:
    layer, rows = nn.Linear(6, 3), torch.rand(4, 6)
    model = to_photonic(layer, physics, channels=6)
    set_core(model, rings="ideal", weight_bits=None, input_bits=None, detector_bits=None, noise=0.0)
    torch.testing.assert_close(model(rows), layer(rows))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: Core.real(p, 40), "channels is 40, but a finesse of 133 holds at most 39"),
        (lambda p: Core(physics=p, channels=8, noise=-1.0), "noise is -1, but must lie in"),
        (lambda p: Core(physics=p, channels=8, weight_bits=0), "bits is 0"),
        (
            lambda p: Core(physics=p, channels=8, rings="calibratd"),
            "rings is 'calibratd', but must be one of",
        ),
        (lambda p: Core(physics=p, channels=8, extinction_db=0.0), r"extinction_db is 0, but must lie in \(0, inf\)"),
        (lambda p: Core(physics=p, channels=8, laser_dbm=math.nan), "laser_dbm is nan, but every element must be fin"),
        (lambda p: Core(physics=p, channels=8, drift_k=math.nan), "drift_k is nan"),
        (
            lambda p: to_photonic(nn.Conv2d(3, 2, 3), p)(torch.ones(1, 4, 5, 5)),
            r"input is \(1, 4, 5, 5\), but must",
        ),
        (lambda p: to_photonic(nn.Conv2d(3, 2, 3), p)(torch.ones(5, 5)), r"input is \(5, 5\), but must be"),
        (
            lambda p: to_photonic(nn.Linear(2, 2), p)(torch.ones(3, 4)),
            r"input is \(3, 4\), but its last .* must be 2",
        ),
        (lambda p: to_photonic(nn.Linear(2, 2), p, colour=1), "no field 'colour'"),
        (lambda p: to_photonic(nn.Linear(2, 2), "modrate"), "did you mean 'moderate'"),
        (lambda p: to_photonic(nn.Linear(2, 2), p)(torch.tensor([1.0, math.nan])), "input is nan"),
        (lambda p: to_photonic(nn.Conv2d(2, 2, 5), p)(torch.ones(1, 2, 3, 3)), "smaller than the kernel"),
        (lambda p: to_photonic(nn.Conv2d(2, 2, 3), p, tile=9), "tile 9 is impossible for kernel side 3"),
        (lambda p: to_photonic(nn.Conv2d(2, 2, 3), p, tile=2, points="worse"), "points is 'worse'"),
    ],
)
def test_mistakes_are_named(physics: Physics, call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call(physics)


def test_a_weight_that_is_not_a_number_is_named(physics: Physics) -> None:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, math.inf)
    with pytest.raises(ValueError, match="weight is inf"):
        to_photonic(layer, physics)(torch.ones(2))


def test_each_group_has_its_full_scale_or_all_share_the_largest() -> None:
    largest = torch.tensor([2.0, 0.0, 5.0])
    core = Core.ideal(load_physics())
    assert core.scales(largest).tolist() == [2.0, 1.0, 5.0]
    assert dataclasses.replace(core, per_group=False).scales(largest).tolist() == [5.0, 5.0, 5.0]

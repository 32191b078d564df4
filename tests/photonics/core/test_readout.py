"""The read-out: its random numbers against published ones, its compiled form against torch, its noise's statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from lumoe import compiled
from lumoe.photonics.core import product, readout
from lumoe.photonics.core.layers import to_photonic
from lumoe.photonics.core.readout import Draw, Readout, add_readings, normals, philox
from lumoe.photonics.physics.parameters import load_physics

native = pytest.mark.skipif(readout._library() is None, reason="no C++ compiler")


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key, words) -> None:
    # Known answers of philox4x32-10, Salmon et al.'s Random123 library.
    assert tuple(int(word) for word in philox(counter, key)) == words


def test_deviates_are_normal_and_uncorrelated() -> None:
    drawn = normals(Draw(3), panel=0, bank=0, banks=4, samples=100_000, device=torch.device("cpu")).double()
    assert stats.kstest(drawn.flatten().numpy(), "norm").pvalue > 1e-3
    assert float(drawn.abs().max()) > 4
    # Neighbours in a bank, the two of a Box-Muller pair, the same place of two banks: all within 4.5 deviations of 0.
    for first, second in [
        (drawn[:, 1:], drawn[:, :-1]),
        (drawn[:, 64:], drawn[:, :-64]),
        (drawn[:, 256:], drawn[:, :-256]),
        (drawn[1:], drawn[:-1]),
        (drawn[:, 64:].abs(), drawn[:, :-64].abs()),
    ]:
        correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
        assert abs(float(correlation)) < 4.5 / first.numel() ** 0.5


def test_each_place_has_noise_of_its_own() -> None:
    def drawn(draw: Draw, panel: int = 0, bank: int = 0) -> torch.Tensor:
        return normals(draw, panel=panel, bank=bank, banks=1, samples=300, device=torch.device("cpu"))

    places = [drawn(Draw(1)), drawn(Draw(2)), drawn(Draw(1, 1)), drawn(Draw(1, 0, 1)), drawn(Draw(1), 1),
              drawn(Draw(1), 0, 1)]  # fmt: skip
    for i, one in enumerate(places):
        for other in places[:i]:
            assert float(torch.isin(one, other).float().mean()) < 0.01


@native
@settings(max_examples=60)
@given(data=st.data())
def test_compiled_and_torch_give_the_same_bits(data: st.DataObject) -> None:
    groups, banks, rows, columns = (data.draw(st.integers(1, most)) for most in (3, 4, 40, 40))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    samples = 50 * torch.randn(groups, banks, rows, columns, generator=generator)
    noise = torch.rand(groups, banks, columns + 3, generator=generator)[..., 1 : columns + 1]
    rounding, noisy = data.draw(st.booleans(), "ADC"), data.draw(st.booleans(), "noise")
    how = Readout(
        quiet=noise if noisy else None,
        intensity=1e-3,
        steps=torch.rand(groups, generator=generator) + 0.5,
        limit=63.0 if rounding else None,
    )
    draw = Draw(data.draw(st.integers(0, 2**32 - 1)), stream=5, call=7)
    wide = torch.zeros(groups, rows, columns + 2)
    total, expected = wide[..., :columns], torch.zeros(groups, rows, columns)
    add_readings(total, samples, how, draw, panel=2, bank=11)
    readout._add_readings(expected, samples, how, draw, 2, 11)
    assert float(wide[..., columns:].abs().max()) == 0
    if rounding or not noisy:
        # Codes are whole numbers, so that their sum is exact in any order.
        torch.testing.assert_close(total, expected, rtol=0, atol=0 if rounding else 1e-4)
    else:
        torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-4)


@native
def test_compiled_deviates_are_bit_for_bit_those_of_torch() -> None:
    library = readout._library()
    assert library is not None
    draw, count = Draw(2**32 - 1, 17, 3), 100_001
    got = torch.empty(count)
    library.lumoe_normals(got.data_ptr(), count, draw.seed | draw.stream << 32, draw.call, 4, 9)
    expected = normals(draw, panel=4, bank=9, banks=1, samples=count, device=torch.device("cpu"))[0]
    assert torch.equal(got, expected)


def test_noise_depends_neither_on_threads_nor_on_how_much_is_done_at_once(monkeypatch) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(6, 12, 3, groups=2), torch.rand(3, 6, 20, 20)
    noisy = to_photonic(layer, "moderate", channels=8, seed=4)
    expected = noisy(images)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(to_photonic(layer, "moderate", channels=8, seed=4)(images), expected)
    finally:
        torch.set_num_threads(threads)
    # As on a device that takes more samples at once, and as on one without the compiled read-out.
    monkeypatch.setattr(product, "_slabs", lambda outputs, width, device: 10_000)
    monkeypatch.setattr(readout, "_library", lambda: None)
    torch.testing.assert_close(to_photonic(layer, "moderate", channels=8, seed=4)(images), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("field", ["seed", "stream", "call"])
@pytest.mark.parametrize("value", [-1, 2**32, 1.5])
def test_a_draw_outside_its_words_is_named(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}, but must be a whole number from 0 to 4294967295"):
        Draw(**{"seed": 0, field: value})


def test_a_seed_that_noise_cannot_have_is_refused_where_it_is_given() -> None:
    with pytest.raises(ValueError, match="seed is -1, but must be a whole number from 0"):
        to_photonic(nn.Linear(2, 2), load_physics(), seed=-1)


def test_without_a_compiler_torch_stands_in(monkeypatch) -> None:
    monkeypatch.setenv(compiled.CHOICE, "0")
    readout._library.cache_clear()
    try:
        assert readout._library() is None
        layer, rows = nn.Linear(6, 3), torch.rand(4, 6)
        without = to_photonic(layer, "moderate", channels=6)(rows)
    finally:
        monkeypatch.undo()
        readout._library.cache_clear()
    torch.testing.assert_close(to_photonic(layer, "moderate", channels=6)(rows), without, rtol=0, atol=1e-6)


def test_a_compiler_that_fails_is_no_error(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "broken.cpp"
    source.write_text("this is not C++\n")
    assert compiled.load([source], ("-fPIC",)) is None
    assert not list((tmp_path / "lumoe").glob("*"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiled.load([source], ()) is None

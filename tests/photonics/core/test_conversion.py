"""What `to_photonic` converts, held to the float layers on an ideal core; and what it says it does not."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

from lumoe import compiled
from lumoe.errors import UserError
from lumoe.photonics.core import fingerprint as fingerprints
from lumoe.photonics.core.core import Core
from lumoe.photonics.core.fingerprint import fingerprint
from lumoe.photonics.core.layers import PhotonicConv2d, PhotonicLinear, photonic_layers, to_photonic
from lumoe.photonics.core.report import Converted, conversion_report
from lumoe.photonics.physics.parameters import load_physics

CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


def ideal(channels: int = 5) -> Core:
    return Core.ideal(load_physics("moderate"), channels)


def check_exact(layer: nn.Module, *inputs: Tensor) -> None:
    """The layer on an ideal core gives its own values and gradients."""
    noisy = to_photonic(layer, ideal())
    with torch.no_grad():
        close(noisy(*inputs), layer(*inputs))
    for module in (noisy, layer):
        module.zero_grad()
        module(*inputs).square().sum().backward()
    gradients = dict(layer.named_parameters())
    for name, parameter in noisy.named_parameters():
        close(parameter.grad, gradients[name].grad)


def close(got: Tensor | None, expected: Tensor | None) -> None:
    assert got is not None
    assert expected is not None
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.detach().abs().max())))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(max_examples=60)
@given(data=st.data())
def test_convolutions_of_every_rank_are_exact(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3), "rank")
    numbers = lambda low, high, name: tuple(data.draw(st.integers(low, high), name) for _ in range(rank))  # noqa: E731
    groups = data.draw(st.sampled_from([1, 2]), "groups")
    padding = data.draw(st.sampled_from(["same", "valid", None]), "padding")
    layer = CONVOLUTIONS[rank - 1](
        2 * data.draw(st.integers(1, 3), "in"),
        2 * data.draw(st.integers(1, 3), "out"),
        numbers(1, 3, "kernel"),
        stride=1 if padding == "same" else numbers(1, 3, "stride"),
        padding=padding or numbers(0, 2, "pads"),
        dilation=numbers(1, 2, "dilation"),
        groups=groups,
        bias=data.draw(st.booleans(), "bias"),
        padding_mode=data.draw(st.sampled_from(["zeros", "circular"]), "mode"),
    ).double()
    sides = (data.draw(st.integers(5, 8), "side") for _ in range(rank))
    images = torch.randn(2, layer.in_channels, *sides, dtype=torch.float64)
    check_exact(layer, images)
    check_exact(layer, images[0])


@settings(max_examples=60)
@given(data=st.data())
def test_transposed_convolutions_of_every_rank_are_exact(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3), "rank")
    numbers = lambda low, high, name: tuple(data.draw(st.integers(low, high), name) for _ in range(rank))  # noqa: E731
    stride, dilation = numbers(1, 3, "stride"), numbers(1, 2, "dilation")
    extra = tuple(data.draw(st.integers(0, max(s, d) - 1), "extra") for s, d in zip(stride, dilation, strict=True))
    layer = TRANSPOSED[rank - 1](
        2 * data.draw(st.integers(1, 3), "in"),
        2 * data.draw(st.integers(1, 3), "out"),
        numbers(1, 3, "kernel"),
        stride=stride,
        padding=numbers(0, 1, "pads"),
        output_padding=extra,
        groups=data.draw(st.sampled_from([1, 2]), "groups"),
        bias=data.draw(st.booleans(), "bias"),
        dilation=dilation,
    ).double()
    sides = (data.draw(st.integers(3, 5), "side") for _ in range(rank))
    images = torch.randn(2, layer.in_channels, *sides, dtype=torch.float64)
    check_exact(layer, images)
    check_exact(layer, images[0])


def test_a_bilinear_layer_is_exact() -> None:
    check_exact(nn.Bilinear(4, 6, 3).double(), torch.randn(5, 4).double(), torch.randn(5, 6).double())


class SamePadded(nn.Conv2d):
    """Pads by its own rule before the convolution, as timm's Conv2dSame."""

    def forward(self, input: Tensor) -> Tensor:
        padded = nn.functional.pad(input, (1, 2, 0, 3))
        return nn.functional.conv2d(padded, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Standardised(nn.Conv2d):
    """Standardises its weights before the convolution, as timm's StdConv2d."""

    def forward(self, input: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(self.weight)
        return nn.functional.conv2d(input, weight, self.bias, self.stride, self.padding)


@pytest.mark.parametrize("kind", [SamePadded, Standardised])
def test_a_subclass_keeps_its_own_forward_pass(kind: type[nn.Conv2d]) -> None:
    layer = kind(4, 6, 3, stride=2, padding=1).double()
    check_exact(layer, torch.randn(2, 4, 9, 9, dtype=torch.float64))
    made = to_photonic(layer, ideal())
    assert isinstance(made, kind)
    assert isinstance(made, PhotonicConv2d)
    tiled = to_photonic(layer, ideal(), tile=2)
    images = torch.randn(1, 4, 9, 9, dtype=torch.float64)
    close(tiled(images), layer(images))
    again = pickle.loads(pickle.dumps(made))  # noqa: S301
    assert type(again) is type(made)
    assert torch.equal(again(images), made(images))


def test_a_shared_layer_is_converted_once_and_in_every_place() -> None:
    shared = nn.Linear(6, 6).double()
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared))
    noisy = to_photonic(model, ideal())
    assert noisy[0] is noisy[2][0]
    assert type(noisy[0]) is PhotonicLinear
    check_exact(model, torch.randn(3, 6, dtype=torch.float64))


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize(
    "made", [lambda: nn.Conv2d(4, 4, 3), lambda: nn.ConvTranspose1d(4, 4, 3), lambda: nn.Linear(8, 4)]
)
def test_a_parametrization_stays_alive(normed: Callable[[nn.Module], nn.Module], made: Callable[[], nn.Module]) -> None:
    layer = normed(made().double()).eval()
    inputs = torch.randn(2, 4, *[8] * (layer.weight.dim() - 2), dtype=torch.float64).squeeze(1)
    if isinstance(layer, nn.Linear):
        inputs = torch.randn(2, 8, dtype=torch.float64)
    check_exact(layer, inputs)
    noisy = to_photonic(layer, ideal())
    assert parametrize.is_parametrized(noisy)
    assert len(photonic_layers(noisy)) == 1
    for module in (noisy, layer):
        with torch.no_grad():
            next(module.parametrizations.weight.parameters()).mul_(
                torch.linspace(1, 3, 4).view(-1, *[1] * (layer.weight.dim() - 1))
            )
    close(noisy(inputs), layer(inputs))
    close(copy.deepcopy(noisy)(inputs), layer(inputs))
    parametrize.remove_parametrizations(noisy, "weight")
    assert len(photonic_layers(noisy)) == 1
    close(noisy(inputs), layer(inputs))


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_hooks_and_the_older_weight_norm_stay() -> None:
    with torch.no_grad():  # torch copies no weights that have a graph
        layer = nn.utils.weight_norm(nn.Conv1d(4, 4, 3).double())
    check_exact(layer, torch.randn(2, 4, 8, dtype=torch.float64))


class Attention(nn.Module):
    """As timm's: a packed projection, torch's functional attention, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.linear = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.linear(mixed.transpose(1, 2).flatten(2))


def test_functional_attention_is_converted_and_exact() -> None:
    check_exact(Attention().double(), torch.randn(2, 7, 12, dtype=torch.float64))
    rows = conversion_report(to_photonic(Attention(), ideal(), strict=True), torch.randn(2, 7, 12))
    assert [(row.name, row.photonic, row.digital_macs) for row in rows] == [
        ("model", True, 0), ("qkv", True, 0), ("linear", True, 0)
    ]  # fmt: skip
    assert [row.macs for row in rows] == [2 * 2 * 2 * 7 * 7 * 6, 2 * 7 * 12 * 36, 2 * 7 * 12 * 12]


@settings(max_examples=25)
@given(data=st.data())
def test_multi_head_attention_is_exact(data: st.DataObject) -> None:
    separate, batch_first = data.draw(st.booleans(), "separate"), data.draw(st.booleans(), "batch first")
    layer = nn.MultiheadAttention(
        8,
        data.draw(st.sampled_from([1, 2, 4]), "heads"),
        bias=data.draw(st.booleans(), "bias"),
        add_bias_kv=data.draw(st.booleans(), "bias kv"),
        add_zero_attn=data.draw(st.booleans(), "zero"),
        kdim=6 if separate else None,
        vdim=10 if separate else None,
        batch_first=batch_first,
    ).double().eval()  # fmt: skip
    noisy = to_photonic(layer, ideal())
    shapes = [(2, 5, 8), (2, 4, 6 if separate else 8), (2, 4, 10 if separate else 8)]
    query, key, value = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    options = {
        "need_weights": data.draw(st.booleans(), "weights"),
        "attn_mask": data.draw(st.sampled_from([None, torch.ones(5, 4).triu(1).bool()]), "mask"),
        "key_padding_mask": data.draw(
            st.sampled_from([None, torch.tensor([[False, False, False, True], [False] * 4])]), "padded"
        ),
    }
    with torch.no_grad():
        (got, weights), (expected, expected_weights) = (m(query, key, value, **options) for m in (noisy, layer))
    close(got, expected)
    assert (weights is None) == (expected_weights is None)
    if weights is not None:
        close(weights, expected_weights)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_an_encoder_does_not_take_torchs_fast_path(grad: bool, padded: bool) -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2).eval()
    noisy = to_photonic(encoder, ideal())
    tokens = torch.randn(2, 5, 8)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    with torch.set_grad_enabled(grad):
        expected, got = (module(tokens, src_key_padding_mask=mask) for module in (encoder, noisy))
        real = to_photonic(encoder, "moderate", channels=16)(tokens, src_key_padding_mask=mask)
    seen = slice(None) if mask is None else ~mask  # what is masked out is zero on the fast path
    torch.testing.assert_close(got[seen], expected[seen], rtol=1e-4, atol=1e-5)
    assert float((real - expected)[seen].detach().abs().max()) > 1e-3
    layers = {row.name for row in conversion_report(noisy, tokens) if row.photonic and row.ran and row.macs}
    assert layers == {f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear1", "linear2")}


class Raw(nn.Module):
    """Multiplies by its own hand, and by a layer's weights without the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.idle = nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x @ self.weight, self.idle.weight)


def mixed() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), Raw(), nn.GRUCell(6, 6))


def test_what_stays_digital_is_named_and_counted() -> None:
    words = r"1: its forward pass calls @, linear itself; 2: recurrent layers are not converted"
    with pytest.raises(UserError, match=f"would stay digital .{words}"):
        to_photonic(mixed(), ideal(), strict=True)
    with pytest.warns(UserWarning, match=f"stay digital .{words}") as caught:
        noisy = to_photonic(mixed(), ideal())
    assert len(caught) == 1
    rows = {row.name: row for row in conversion_report(noisy, torch.randn(4, 6))}
    counts = {name: (row.photonic, row.ran, row.macs, row.digital_macs) for name, row in rows.items()}
    assert counts == {
        "0": (True, True, 4 * 36, 0),
        "1": (False, True, 0, 2 * 4 * 36),
        "1.idle": (True, False, 0, 0),
        "2": (False, True, 0, 2 * 3 * 4 * 36),
    }
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    assert rows["0"].share == pytest.approx(1 / 9)
    assert [(row.name, row.ran, row.share) for row in conversion_report(noisy)] == [
        (name, None, 0) for name in ("0", "1", "1.idle", "2")
    ]
    assert conversion_report(nn.Sequential(nn.ReLU())) == []


def test_a_product_that_no_code_shows_is_found_by_a_pass() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = getattr(x, "mat" + "mul")(x.mT)
            return result

    model = to_photonic(nn.Sequential(nn.Linear(6, 6), Hidden()), ideal(), strict=True)
    assert conversion_report(model, torch.randn(3, 6))[1] == Converted(
        "1", "Hidden", False, "it multiplies in ways that are not converted", True, 0, 54, 54 / 162
    )


def test_the_report_takes_no_noise_and_leaves_no_hooks() -> None:
    images = torch.rand(1, 3, 8, 8)
    noisy = to_photonic(nn.Conv2d(3, 4, 3), "moderate", channels=8)
    (row,) = conversion_report(noisy, images)
    assert row.macs == 4 * 3 * 9 * 36
    assert torch.equal(noisy(images), to_photonic(nn.Sequential(noisy)[0], "moderate", channels=8)(images))
    assert not noisy._forward_hooks
    assert not noisy._forward_pre_hooks


def test_models_that_are_converted_whole_do_not_warn() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.matmul = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.helper(self.linear(x)) * 2

        def helper(self, x: Tensor) -> Tensor:
            result: Tensor = self.matmul(x).relu()
            return result

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_photonic(nn.Sequential(Block(), nn.LayerNorm(4), nn.Embedding(3, 4)), ideal())


def test_layers_without_weights_yet_and_scripted_ones_are_named() -> None:
    with pytest.raises(UserError, match="model: it has no weights yet: run the model once"):
        to_photonic(nn.LazyLinear(3), ideal(), strict=True)


def halved(layer: nn.Linear) -> None:
    layer.load_state_dict({"weight": layer.weight.detach() / 2})


def inferred(layer: nn.Linear) -> None:
    with torch.inference_mode():
        layer.weight.mul_(0.5)


def in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[0, 0] = layer.weight[0, 0].nextafter(torch.tensor(9.0))


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "one bit in place": in_place,
    "inference mode": inferred,
    "data in place": lambda layer: layer.weight.data.clamp_(-0.01, 0.01),
    "data copied": lambda layer: layer.weight.data.copy_(torch.randn(6, 8)),
    "data assigned": lambda layer: setattr(layer.weight, "data", torch.randn(6, 8)),
    "numpy": lambda layer: layer.weight.detach().numpy().sort(axis=0),
    "signs": lambda layer: layer.weight.data.neg_(),
    "order": lambda layer: layer.weight.data.copy_(layer.weight.data.flip(0, 1)),
    "state dict": halved,
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_weight_changes_the_rings(
    change: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(fingerprints, "_library", lambda: None)
    elif compiled.compiler() is None:
        pytest.skip("no C++ compiler")
    layer = to_photonic(nn.Linear(8, 6, bias=False), ideal())
    rows = torch.randn(3, 8)
    with torch.no_grad():
        layer(rows)
        held, before = layer._held[0], layer.weight.detach().clone()
        layer(rows)
        assert layer._held[0] is held  # nothing changed: the rings stay
        CHANGES[change](layer)
        assert not torch.equal(layer.weight, before)
        torch.testing.assert_close(layer(rows), rows @ layer.weight.T)
        assert layer._held[0] is not held


def test_functional_call_sets_the_rings() -> None:
    layer, rows = to_photonic(nn.Linear(64, 64, bias=False), ideal(16)), torch.randn(2, 64)
    for _ in range(20):
        weight = torch.randn(64, 64)
        torch.testing.assert_close(torch.func.functional_call(layer, {"weight": weight}, (rows,)), rows @ weight.T)
        del weight


@settings(max_examples=50)
@given(
    size=st.integers(0, 400_000),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16]),
    at=st.floats(0, 1, exclude_max=True),
    native=st.booleans(),
)
def test_one_bit_tells_tensors_apart(size: int, dtype: torch.dtype, at: float, native: bool) -> None:
    library = fingerprints._library() if native else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "_library", lambda: library)
        tensor = torch.ones(size, dtype=dtype)
        found = fingerprint(tensor)
        assert found == fingerprint(tensor.clone())
        if size:
            tensor[int(at * size)] = 1 + torch.finfo(dtype).eps
            assert fingerprint(tensor) != found


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(8, 4), (0, 8)),
        (nn.Linear(8, 4), (3, 0, 8)),
        (nn.Conv2d(4, 4, 3), (0, 4, 8, 8)),
        (nn.ConvTranspose1d(4, 6, 3), (0, 4, 8)),
        (nn.MultiheadAttention(4, 2), (5, 0, 4)),
    ],
)
def test_empty_batches_give_empty_results(layer: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = (torch.rand(shape),) * (3 if isinstance(layer, nn.MultiheadAttention) else 1)
    got, expected = (module(*inputs) for module in (to_photonic(layer, "moderate", channels=4), layer))
    if isinstance(got, tuple):
        got, expected = got[0], expected[0]
    assert got.shape == expected.shape
    assert got.numel() == 0


def test_torch_func_grad_gives_the_gradient_of_the_exact_layer() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    inputs = torch.randn(4, 2, 6)

    def gradients(module: nn.Module) -> dict[str, Tensor]:
        loss = lambda parameters: torch.func.functional_call(module, parameters, (inputs,)).sum()  # noqa: E731
        found: dict[str, Tensor] = torch.func.grad(loss)(dict(module.named_parameters()))
        return found

    got, expected = gradients(to_photonic(model, ideal())), gradients(model)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-5)
    noisy = gradients(to_photonic(model, "moderate", channels=16))
    assert not torch.equal(noisy["2.weight"], expected["2.weight"])  # its inputs are noisy
    with pytest.raises(UserError, match=r"cannot run under torch\.vmap"):
        torch.func.vmap(to_photonic(nn.Linear(2, 2), ideal()))(torch.ones(3, 2))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_recomputes_with_the_same_noise(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 4))
    inputs = torch.rand(5, 8, requires_grad=True)
    found = []
    for run in (lambda m, x: m(x), lambda m, x: checkpoint(m, x, use_reentrant=reentrant)):
        noisy = to_photonic(model, "moderate", channels=4, noise=20.0)
        outputs = run(noisy, inputs)
        run(noisy, inputs + 1)  # later draws do not come between
        outputs.square().sum().backward()
        found.append([parameter.grad.clone() for parameter in noisy.parameters()])
        assert [layer._draw.call for layer in photonic_layers(noisy)] == [2, 2, 2]
    # A reentrant one runs forward without gradients: roundings differ. Other noise would differ by a half and more.
    for first, second in zip(*found, strict=True):
        assert float((first - second).norm() / first.norm()) <= (0.05 if reentrant else 0)

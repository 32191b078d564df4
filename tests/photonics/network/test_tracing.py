"""What is traced of modules of every kind, against torch's own count of operations; and what fails to be traced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lumoe.errors import UserError
from lumoe.photonics.network.layers import Input, Network, parse_inputs
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.shapes import convolution_shapes
from lumoe.photonics.network.trace import trace


class Calls(nn.Module):
    """A function of the input, and the parameters that it uses."""

    def __init__(self, call: Callable[..., Tensor], **sides: tuple[int, ...]) -> None:
        super().__init__()
        self.call = call
        for name, side in sides.items():
            self.register_parameter(name, nn.Parameter(torch.ones(side)))

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, **dict(self.named_parameters()))


class Attention(nn.Module):
    """Attention of one tensor with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inside = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(query=x, key=x, value=x, need_weights=False)[0]


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(input=x)


class Unpooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(self.conv(x)))


def patches(x: Tensor, w: Tensor) -> Tensor:
    return functional.conv2d(x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4), w)


# A module, the sides of its input without the batch, and how its layers' kinds and weights must be.
ZOO = {
    "conv1d": (lambda: nn.Conv1d(6, 4, 5, 2, 1, dilation=2, groups=2), (6, 40), [("conv", 60)]),
    "conv2d": (lambda: nn.Conv2d(3, 8, (3, 5), (1, 2), (1, 0)), (3, 16, 20), [("conv", 360)]),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (6, 9, 9), [("conv", 108)]),
    "conv3d": (lambda: nn.Conv3d(4, 6, (3, 2, 5), (2, 1, 3), 1, groups=2), (4, 7, 8, 9), [("conv", 360)]),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 5, 2), (4, 10), [("transposed", 120)]),
    "transposed2d": (lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1, groups=2), (4, 5, 7), [("transposed", 192)]),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 3, 3), (2, 3, 4, 5), [("transposed", 162)]),
    "linear": (lambda: nn.Linear(20, 7), (5, 20), [("linear", 140)]),
    "linear of one": (lambda: nn.Linear(20, 7), (20,), [("linear", 140)]),
    "attention": (
        lambda: Attention(16, 4), (9, 16), [("linear", 768), ("product", 0), ("product", 0), ("linear", 256)],
    ),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), (5, 8),
        [("linear", 192), ("product", 0), ("product", 0), ("linear", 64), ("linear", 96), ("linear", 96)],
    ),
    "recurrent": (lambda: nn.GRU(6, 5, batch_first=True), (2, 6), [("linear", 90), ("linear", 75)] * 2),
    "keywords": (Keywords, (3, 8, 8), [("conv", 216)]),
    "unpooled": (Unpooled, (3, 8, 8), [("conv", 216), ("pool", 0), ("pool", 0)]),
    "normed": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), (3, 8, 8), [("conv", 108)]),
    "patches": (lambda: Calls(patches, w=(5, 3, 2, 2)), (3, 8, 12), [("conv", 60)]),
    "functional": (lambda: Calls(lambda x, w: functional.linear(x, w), w=(5, 6)), (4, 6), [("linear", 30)]),
    "from the left": (lambda: Calls(lambda x, w: w @ x, w=(5, 6)), (6, 9), [("linear", 30)]),
    "einsum": (lambda: Calls(lambda x, w: torch.einsum("bhnd,hde->bhne", x, w), w=(3, 4, 5)), (3, 6, 4),
               [("linear", 60)]),
    "own filter": (lambda: Calls(lambda x: functional.conv2d(x, x[:, :, :3, :3])), (2, 8, 8), [("conv", 0)]),
}  # fmt: skip


def counted(model: nn.Module, shape: tuple[int, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, *shape))
    return counter.get_total_flops() // 2


def check_shapes(network: Network) -> None:
    """The columns that the closed forms read hold the same counts."""
    layers = network.scope("whole")
    shapes = convolution_shapes(layers)
    assert shapes.macs[:, 0].tolist() == [layer.macs for layer in layers]
    assert shapes.weights[:, 0].tolist() == [layer.held for layer in layers]


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_layer_counts_what_torch_does(name: str) -> None:
    make, shape, layers = ZOO[name]
    model = make()
    network = trace(model.to("meta"), shape, name)
    assert [(layer.kind, layer.weights) for layer in network.layers] == layers
    with torch.device("meta"):
        assert sum(layer.macs for layer in network.layers) == counted(model, shape)
    assert (network.other_macs, network.ignored) == (0, ())
    check_shapes(network)


SIDES = st.integers(1, 3)


@settings(max_examples=60, deadline=None)
@given(
    rank=st.integers(1, 3), transposed=st.booleans(), groups=SIDES, before=SIDES, after=SIDES, batch=SIDES,
    sides=st.lists(st.integers(1, 9), min_size=3, max_size=3), kernel=st.lists(SIDES, min_size=3, max_size=3),
    stride=st.lists(SIDES, min_size=3, max_size=3), padding=st.integers(0, 1), dilation=st.integers(1, 2),
)  # fmt: skip
def test_convolutions_of_any_shape_count_what_torch_does(
    rank, transposed, groups, before, after, batch, sides, kernel, stride, padding, dilation
) -> None:
    plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[rank - 1] if transposed else plain
    sides, kernel, stride = sides[:rank], kernel[:rank], stride[:rank]
    if transposed:
        assume(
            all((n - 1) * s + dilation * (k - 1) >= 2 * padding for n, k, s in zip(sides, kernel, stride, strict=True))
        )
    else:
        assume(all(n + 2 * padding > dilation * (k - 1) for n, k in zip(sides, kernel, strict=True)))
    with torch.device("meta"):
        model = kind(
            before * groups, after * groups, tuple(kernel), tuple(stride), padding, groups=groups, dilation=dilation
        )
        image = torch.empty(batch, before * groups, *sides)
    network = trace(model, [Input(tuple(image.shape), "input")], "one")
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert sum(layer.macs for layer in network.layers) == counter.get_total_flops() // 2
    assert sum(layer.weights for layer in network.layers) == model.weight.numel()
    check_shapes(network)


@settings(max_examples=40, deadline=None)
@given(batch=SIDES, rows=SIDES, inner=SIDES, columns=SIDES, from_left=st.booleans(), computed=st.booleans())
def test_products_of_matrices_hold_their_weights(batch, rows, inner, columns, from_left, computed) -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        other = w.expand(batch, *w.shape) + (x.sum() if computed else 0)
        return torch.bmm(other, x) if from_left else torch.bmm(x, other)

    sides, held = ((inner, columns), (rows, inner)) if from_left else ((rows, inner), (inner, columns))
    network = trace(Calls(call, w=held).to("meta"), [Input((batch, *sides), "x")], "product")
    (layer,) = network.layers
    assert layer.macs == batch * rows * inner * columns
    assert (layer.kind, layer.rewritten) == (("product", True) if computed else ("linear", False))
    assert layer.weights == (0 if computed else layer.held)
    check_shapes(network)


NETS = """
import torch
from torch import nn

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Embedding(50, 8), nn.Linear(8, 4)
    def forward(self, tokens, mask=None):
        x = self.mix(self.embed(tokens))
        return x if mask is None else x * mask[..., None]

class Reads(nn.Module):
    def __init__(self):
        super().__init__()
        self.sizes = torch.linspace(1, 4, 4).tolist()
        self.conv = nn.Conv2d(3, int(self.sizes[-1]), 3)
    def forward(self, x):
        return self.conv(x) if x.sum().item() == 0 else x

class Wrong(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
    def forward(self, x):
        x.sum().item()
        return x.nothing
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    # An imported module stays: each test has one of its own.
    name = f"nets_in_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    return name


def test_inputs_have_names_and_types(nets: str) -> None:
    given = parse_inputs(["tokens:2x6:int64", "mask:2x6:bool"])
    (layer,) = load_network(f"{nets}:Tokens", given).layers
    assert (layer.macs, layer.weights) == (2 * 6 * 8 * 4, 32)
    assert load_network(f"{nets}:Tokens", parse_inputs(["6:int64"])).layers[0].macs == 6 * 8 * 4
    with pytest.raises(UserError, match="does not run on an input of word: 1 x 6 of int64: TypeError"):
        load_network(f"{nets}:Tokens", parse_inputs(["word:1x6:int64"]))


def test_what_needs_data_runs_on_zeros(nets: str) -> None:
    assert load_network(f"{nets}:Reads", (3, 8, 8)).layers[0].macs == 6 * 6 * 27 * 4
    with pytest.raises(UserError, match=rf"AttributeError in line 27 of .*{nets}\.py"):
        load_network(f"{nets}:Wrong", (3, 8, 8))

    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if bool((x == 0).all()) else x

    assert trace(Looks().to("meta"), (3, 8, 8), "looks").layers[0].macs == 6 * 6 * 27 * 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_script_is_traced() -> None:
    with torch.device("meta"):
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3)))
    (layer,) = trace(scripted, (3, 8, 8), "scripted").layers
    assert (layer.name, layer.macs) == ("conv2d", 6 * 6 * 27 * 8)


def test_a_network_that_multiplies_nothing_has_a_table_and_no_estimate() -> None:
    network = trace(nn.Sequential(nn.Flatten()).to("meta"), (3, 2, 2), "flat")
    assert network.table()[["name", "macs"]].empty
    with pytest.raises(UserError, match="flat: it has no layer with multiplications"):
        network.scope("whole")


def test_layers_of_unknown_type_are_named() -> None:
    network = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LocalResponseNorm(2)).to("meta"), (3, 8, 8), "normed")
    assert "ignored 1 layers of unknown type: 1 (LocalResponseNorm)" in network.notes()[0]


def test_coverage_says_what_is_left_out() -> None:
    network = load_network("alexnet")
    said = network.coverage(network.convolutions())
    # Convolutions: 666 of 724 million multiply-accumulates, 2.33 of 61 million weights (Krizhevsky et al. 2012).
    assert "covers 91.9 % of the multiply-accumulates and 3.83 % of the weights" in said
    assert said.endswith("linear layers are not estimated")
    assert network.coverage(network.scope("whole")).endswith(
        "covers 100 % of the multiply-accumulates and 100 % of the weights"
    )

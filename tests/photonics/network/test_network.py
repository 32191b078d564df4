"""Traced layers against published counts, and what a user may get wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lumoe.errors import UserError
from lumoe.photonics.network.layers import Input, parse_inputs, read_network, write_network
from lumoe.photonics.network.load import load_network
from lumoe.photonics.network.trace import trace

# Convolution multiply-accumulates, all multiply-accumulates, weights (without biases and normalisation), in millions.
# AlexNet: Krizhevsky et al. 2012 and Chen et al. JSSC 2017 (666 M in convolutions); VGG16: Simonyan and Zisserman 2015
# (15.3 G in Chen et al., 138 M weights); ResNet-18: He et al. 2016 (1.8 G, 11.7 M); MobileNetV2: Sandler et al. 2018
# (300 M, 3.4 M).
PUBLISHED = {
    "alexnet": (666, 724, 61.0),
    "vgg16": (15_347, 15_470, 138.3),
    "resnet18": (1_813, 1_814, 11.68),
    "mobilenet_v2": (299, 301, 3.47),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name: str) -> None:
    network = load_network(name)
    convolutions, everything, weights = PUBLISHED[name]
    assert sum(layer.macs for layer in network.convolutions()) == pytest.approx(convolutions * 1e6, rel=0.005)
    assert sum(layer.macs for layer in network.layers) == pytest.approx(everything * 1e6, rel=0.005)
    assert sum(layer.weights for layer in network.layers) == pytest.approx(weights * 1e6, rel=0.005)
    assert network.notes() == []


def test_grouping_halves_three_of_alexnets_layers() -> None:
    grouped, whole = (load_network(name).convolutions() for name in ("alexnet", "alexnet-ungrouped"))
    assert [b.weights / a.weights for a, b in zip(grouped, whole, strict=True)] == [1, 2, 1, 2, 2]
    assert [layer.out_side for layer in whole] == [(55, 55), (27, 27), (13, 13), (13, 13), (13, 13)]


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (3, 0, 1, 4), (1, "same", 1, 8), ((1, 2), (0, 1), (2, 1), 2)],
)
def test_a_convolution_counts_what_torch_would_multiply(stride, padding, dilation, groups) -> None:
    layer_module = nn.Conv2d(8, 16, (3, 5), stride=stride, padding=padding, dilation=dilation, groups=groups)
    output = layer_module(torch.zeros(1, 8, 20, 24))
    (layer,) = trace(nn.Sequential(layer_module).to("meta"), (8, 20, 24), "one").layers
    assert layer.out_side == tuple(output.shape[-2:])
    assert layer.weights == layer_module.weight.numel()
    assert layer.macs == layer_module.weight[0].numel() * output.numel()


def test_depthwise_pool_activation_and_linear_are_told_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 81, 5)
    )
    network = trace(model.to("meta"), (8, 20, 20), "small")
    assert [layer.kind for layer in network.layers] == ["conv", "activation", "pool", "linear"]
    assert [layer.macs for layer in network.layers] == [9 * 8 * 18 * 18, 0, 0, 8 * 81 * 5]


class Unusual(nn.Module):
    """A layer type and a multiplication that no counter knows by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.deconv = nn.ConvTranspose2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.deconv(self.conv(x)).flatten(1)
        return x @ x.T


def test_what_no_counter_knows_by_name_is_a_layer_all_the_same() -> None:
    network = trace(Unusual().to("meta"), (3, 8, 8), "unusual")
    assert [(layer.name, layer.kind) for layer in network.layers] == [
        ("conv", "conv"), ("deconv", "transposed"), ("product", "product"),
    ]  # fmt: skip
    # 6 x 6 positions, 4 x 4 channels, 9 taps; and one row of 256 numbers squared.
    assert [layer.macs for layer in network.layers[1:]] == [6 * 6 * 4 * 4 * 9, 4 * 8 * 8]
    assert network.notes() == []


def test_a_module_that_runs_twice_is_two_layers() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1)
    layers = trace(nn.Sequential(shared, nn.ReLU(), shared).to("meta"), (4, 8, 8), "shared").convolutions()
    assert [layer.name for layer in layers] == ["0", "0#2"]
    assert layers[0].macs == layers[1].macs


def test_a_users_factory_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(1, 2, 3))\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert load_network("my_net:make", (1, 8, 8)).layers[0].macs == 6 * 6 * 18
    with pytest.raises(UserError, match="must return a torch"):
        load_network("my_net:wrong")
    with pytest.raises(UserError, match="no factory 'missing'"):
        load_network("my_net:missing")


def test_what_a_users_code_raises_is_one_sentence_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_net.py").write_text(
        """from torch import nn
class Odd(nn.Module):
    def forward(self, x):
        return x.reshape(5)
def makes():
    raise KeyError
def runs():
    return Odd()
"""
    )
    (tmp_path / "broken_net.py").write_text("def make(:\n")
    (tmp_path / "failing_net.py").write_text("\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("raising_net:makes", "raising_net:makes: KeyError in line 6 of .*raising_net.py .without a message"),
        ("raising_net:runs", "does not run on an input of 3 x 8 x 8: RuntimeError in line 4 of .*raising_net.py"),
        ("broken_net:make", "cannot import 'broken_net': SyntaxError in line 1 of .*broken_net.py"),
        ("failing_net:make", "cannot import 'failing_net': ZeroDivisionError in line 2 of .*failing_net.py"),
    ):
        with pytest.raises(UserError, match=words):
            load_network(name, (3, 8, 8))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("alexnett", (3, 224, 224), "did you mean 'alexnet'"),
        ("no_such_module:make", (3, 224, 224), "cannot import 'no_such_module'"),
        ("alexnet", (3, 20, 20), "does not run on an input of 3 x 20 x 20"),
        ("alexnet", (3, 0, 224), "at least 1"),
    ],
)
def test_mistakes_are_one_sentence(name: str, shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_network(name, shape)


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(UserError, match="no convolution layer"):
        trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).to("meta"), (3, 2, 2), "mlp").convolutions()


def test_shapes_are_parsed() -> None:
    assert parse_inputs(None) is None
    assert parse_inputs(["1x28X32"]) == (Input((1, 1, 28, 32)),)
    assert parse_inputs(["128:int64", "mask:2x128:bool", "x:4"]) == (
        Input((1, 128), dtype="int64"), Input((2, 128), "mask", "bool"), Input((4,), "x"),
    )  # fmt: skip
    for wrong in ("3x-1x5", "3x0x5", "axbxc", "", "3x²", "a:b:c:d", "1x2:int46", "x:1x2:complex64", "0:3x4:bool"):
        with pytest.raises(UserError, match=f"the input is '{wrong}'"):
            parse_inputs([wrong])
    with pytest.raises(UserError, match="'x' is given twice"):
        parse_inputs(["x:1x2", "x:1x2"])


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
def test_a_traced_file_is_the_network(tmp_path: Path, name: str) -> None:
    network = load_network(name)
    file = tmp_path / f"{name}.json"
    write_network(file, network)
    assert load_network(str(file)) == network
    with pytest.raises(UserError, match="traced for an input of 3 x 224 x 224, but 3 x 32 x 32 is given"):
        load_network(str(file), (3, 32, 32))


@pytest.mark.parametrize("text", ["[]", "{}", '{"layers": [{"colour": 1}]}', '{"layers": [3]}'])
def test_another_file_is_no_network(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(UserError, match="not a traced network"):
        read_network(tmp_path / "other.json")


def test_a_traced_network_needs_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "alexnet.json"
    write_network(file, load_network("alexnet"))
    code = (
        "import sys; from lumoe.photonics.studies import crosscheck, metrics, pcnna; "
        f"from lumoe.photonics.network.load import load_network; load_network({str(file)!r}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The layers of any `torch.nn.Module`, traced on the meta device: shapes and counts without weights or arithmetic."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lumoe.errors import UserError, nearest
from lumoe.photonics.zoo import NETWORKS

Shape = tuple[int, int, int]
# Leaves without multiplications: they are counted as layers, and cost a photonic core nothing.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Softmax)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
FOLDED = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Layer:
    """One layer; sides are (height, width) in pixels. A linear layer is a 1 x 1 convolution of its positions."""

    name: str
    kind: str
    in_channels: int = 0
    out_channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    in_side: tuple[int, int] = (1, 1)
    out_side: tuple[int, int] = (1, 1)

    @property
    def locations(self) -> int:
        """Kernel locations: positions of the output."""
        return self.out_side[0] * self.out_side[1]

    @property
    def kernel_inputs(self) -> int:
        """Inputs of one kernel: m² · n_c of its group."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def weights(self) -> int:
        """Number of weights, without bias."""
        return self.out_channels * self.kernel_inputs if self.macs else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.locations * self.out_channels * self.kernel_inputs if self.kind in ("conv", "linear") else 0


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run, and what was left out."""

    name: str
    layers: tuple[Layer, ...]
    ignored: tuple[str, ...] = ()
    other_macs: int = 0

    def convolutions(self) -> tuple[Layer, ...]:
        """The convolution layers.

        Raises:
            UserError: there are none.
        """
        found = tuple(layer for layer in self.layers if layer.kind == "conv")
        if not found:
            raise UserError(f"{self.name}: it has no convolution layer, which the accelerators need")
        return found

    def notes(self) -> list[str]:
        """Sentences on what the estimate leaves out, empty if nothing."""
        said = [f"{self.name}: ignored {len(self.ignored)} layers of unknown type: {', '.join(self.ignored)}"]
        more = [
            f"{self.name}: {self.other_macs:,} multiply-accumulates outside convolution and linear layers are ignored"
        ]
        return (said if self.ignored else []) + (more if self.other_macs else [])

    def table(self) -> pd.DataFrame:
        """One row a layer, with its counts."""
        counts = ("locations", "kernel_inputs", "weights", "macs")
        return pd.DataFrame([asdict(x) | {name: getattr(x, name) for name in counts} for x in self.layers])


def trace(model: nn.Module, input_shape: Shape, name: str) -> Network:
    """Return the layers of a model that lies on the meta device, for one input of shape [1, *input_shape].

    Raises:
        UserError: the model does not take that input.
    """
    layers: list[Layer] = []
    ignored: list[str] = []

    def watch(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            layer = _layer(path, module, inputs, output)
            if layer is not None:
                times = sum(known.name.partition("#")[0] == path for known in layers)
                # A module that runs twice is two layers.
                layers.append(replace(layer, name=f"{path}#{times + 1}") if times else layer)
            elif not isinstance(module, FOLDED):
                ignored.append(f"{path} ({type(module).__name__})")

        return hook

    leaves = [(path, module) for path, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch(path)) for path, module in leaves]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(1, *input_shape, device="meta"))
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: the model does not run on an input of {_words(input_shape)} ({reason})") from None
    finally:
        for handle in handles:
            handle.remove()
    known = sum(layer.macs for layer in layers)
    return Network(name, tuple(layers), tuple(ignored), max(0, counter.get_total_flops() // 2 - known))


def _layer(path: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Layer | None:
    if isinstance(module, nn.Conv2d):
        # Strings ("same") keep the side; the padding that does it is not needed by any count.
        padding = (0, 0) if isinstance(module.padding, str) else _pair(module.padding)
        return Layer(
            path, "conv", module.in_channels, module.out_channels, _pair(module.kernel_size), _pair(module.stride),
            padding, _pair(module.dilation), module.groups, _side(inputs[0]), _side(output),
        )  # fmt: skip
    if isinstance(module, nn.Linear):
        positions = (output.numel() // module.out_features, 1)
        return Layer(path, "linear", module.in_features, module.out_features, in_side=positions, out_side=positions)
    if isinstance(module, (*ACTIVATIONS, *POOLS)):
        kind = "pool" if isinstance(module, POOLS) else "activation"
        sides = (_side(inputs[0]), _side(output)) if output.ndim == 4 else ((1, 1), (1, 1))
        return Layer(path, kind, inputs[0].shape[1], output.shape[1], in_side=sides[0], out_side=sides[1])
    return None


def _pair(value: Sequence[int]) -> tuple[int, int]:
    return int(value[0]), int(value[1])


def _side(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])


def _words(shape: Shape) -> str:
    return " x ".join(map(str, shape))


def parse_shape(text: str) -> Shape:
    """Return the (channels, height, width) of ``3x224x224``.

    Raises:
        UserError: not three whole numbers of at least 1.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"the input is '{text}', but must be CHANNELSxHEIGHTxWIDTH, each at least 1, such as 3x224x224")
    return int(parts[0]), int(parts[1]), int(parts[2])


def load_network(name: str, input_shape: Shape | None = None) -> Network:
    """Return a shipped network by name, or trace the user's own `module:factory`.

    Args:
        name: a name of `NETWORKS`, or ``package.module:factory`` where ``factory()`` returns an `nn.Module`; the
            current folder is searched too.
        input_shape: (channels, height, width); 3 x 224 x 224 unless given.

    Raises:
        UserError: an unknown name, a module that cannot be imported, or a factory that does not return a module.
    """
    shape = input_shape or (3, 224, 224)
    if min(shape) < 1:
        raise UserError(f"the input is {_words(shape)}, but every side must be at least 1")
    factory = _factory(name) if ":" in name else NETWORKS.get(name)
    if factory is None:
        raise UserError(f"unknown network '{name}'{nearest(name, NETWORKS)}")
    with torch.device("meta"):
        model = factory()
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: it returned a {type(model).__name__}, but must return a torch.nn.Module")
    return trace(model.to("meta"), shape, name)


def _factory(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ImportError as error:
        raise UserError(f"{name}: cannot import '{module}' ({error})") from None
    if not callable(found):
        raise UserError(f"{name}: '{module}' has no factory '{attribute}'")
    return found  # type: ignore[no-any-return]

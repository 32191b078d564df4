"""Tracing of any `torch.nn.Module` on the meta device: shapes and counts without weights or arithmetic.

Which modules are layers, and what is read from them, stands in `_layer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lumoe.errors import UserError, nearest
from lumoe.named import named_function, users_code
from lumoe.photonics.network.layers import Layer, Network, Shape, words
from lumoe.photonics.network.zoo import NETWORKS

# Leaves without multiplications: they are counted as layers, and cost a photonic core nothing.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Softmax)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
FOLDED = (nn.BatchNorm2d, nn.Dropout, nn.Dropout2d, nn.Flatten, nn.Identity)


def trace_network(name: str, shape: Shape) -> Network:
    """Return a shipped network by name, or trace the user's own `module:factory`; see `load_network`.

    Raises:
        UserError: an unknown name, a module that cannot be imported, or a factory that does not return a module.
    """
    factory = named_function(name, "factory") if ":" in name else NETWORKS.get(name)
    if factory is None:
        raise UserError(f"unknown network '{name}'{nearest(name, NETWORKS)}")
    with torch.device("meta"), users_code(name):
        model = factory()
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: it returned a {type(model).__name__}, but must return a torch.nn.Module")
    return trace(model.to("meta"), shape, name)


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
        fails = f"{name}: the model does not run on an input of {words(input_shape)}"
        with torch.no_grad(), FlopCounterMode(display=False) as counter, users_code(fails):
            model.eval()(torch.empty(1, *input_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    known = sum(layer.macs for layer in layers)
    return Network(name, input_shape, tuple(layers), tuple(ignored), max(0, counter.get_total_flops() // 2 - known))


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

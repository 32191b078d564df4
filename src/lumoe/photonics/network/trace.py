"""Tracing of any `torch.nn.Module` on the meta device: shapes and counts without weights or arithmetic.

Multiplications are read off the operations that run, not off the types of modules: `operations.layers_of` says which.
So parameters outside layers, functional calls and modules of your own are counted, too. What multiplies nothing is
told apart by type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

from lumoe.errors import UserError, nearest
from lumoe.named import named_function, users_code
from lumoe.photonics.network.layers import Input, Layer, Network, Shape, as_inputs, listed
from lumoe.photonics.network.operations import layers_of
from lumoe.photonics.network.zoo import NETWORKS

# Leaves without multiplications: they are counted as layers, and cost a photonic core nothing.
ACTIVATIONS = (
    nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Softmax, nn.PReLU, nn.ELU,
    nn.Mish, nn.Hardsigmoid, nn.Softplus,
)  # fmt: skip
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
    nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d,
)  # fmt: skip
FOLDED = (
    nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.dropout._DropoutNd, nn.Flatten,
    nn.Unflatten, nn.Identity, nn.Embedding, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle,
    nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ConstantPad1d, nn.ConstantPad2d,
)  # fmt: skip
# Modules whose one multiplication has their name, whether or not they have parts.
_NAMED = (nn.modules.conv._ConvNd, nn.Linear)


def trace_network(name: str, inputs: Sequence[Input]) -> Network:
    """Return a shipped network by name, or trace the user's own `module:factory`; see `load_network`.

    A module that cannot be built or run without data is built and run on the CPU.

    Raises:
        UserError: an unknown name, a module that cannot be imported, or a factory that does not return a module.
    """
    factory = named_function(name, "factory") if ":" in name else NETWORKS.get(name)
    if factory is None:
        raise UserError(f"unknown network '{name}'{nearest(name, NETWORKS)}")
    try:
        return _trace(_made(factory, name, "meta").to("meta"), inputs, name, "meta")
    except _NeedsDataError:
        return _trace(_made(factory, name, "cpu"), inputs, name, "cpu")


def _made(factory: Callable[[], Any], name: str, device: str) -> nn.Module:
    with users_code(name), _data(device), torch.device(device):
        model = factory()
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: it returned a {type(model).__name__}, but must return a torch.nn.Module")
    return model


def trace(model: nn.Module, inputs: Shape | Sequence[Input], name: str) -> Network:
    """Return the layers of a model, on the device on which its parameters lie; the meta device needs no memory.

    A model on the meta device that cannot run without data runs once more on the CPU, its weights and inputs zero.

    Args:
        inputs: of a model with one input its shape without the batch, or all inputs.

    Raises:
        UserError: the model does not take that input.
    """
    given = as_inputs(inputs)
    device = next((tensor.device.type for tensor in (*model.parameters(), *model.buffers())), "meta")
    try:
        return _trace(model, given, name, device)
    except _NeedsDataError:
        zeros = deepcopy(model).to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*zeros.parameters(), *zeros.buffers()):
                tensor.zero_()
        return _trace(zeros, given, name, "cpu")


class _NeedsDataError(UserError):
    """What a model does cannot be done without data."""


@contextmanager
def _data(device: str) -> Iterator[None]:
    """Tell an error that the meta device is to blame for from one that is the user's."""
    try:
        yield
    except Exception as error:
        if device == "meta" and (isinstance(error, NotImplementedError) or "meta" in str(error).lower()):
            raise _NeedsDataError(str(error)) from None
        raise


def _trace(model: nn.Module, inputs: Sequence[Input], name: str, device: str) -> Network:
    tensors = [torch.zeros(one.shape, dtype=getattr(torch, one.dtype), device=device) for one in inputs]
    by_position = [tensor for one, tensor in zip(inputs, tensors, strict=True) if not one.name]
    by_name = {one.name: tensor for one, tensor in zip(inputs, tensors, strict=True) if one.name}
    recorder = _Recorder(tensors)
    fast = torch.backends.mha.get_fastpath_enabled()
    # One kernel that does all of attention would hide its products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        fails = f"{name}: the model does not run on an input of {listed(inputs)}"
        with (
            users_code(fails), _data(device), torch.device(device), torch.no_grad(), recorder.watching(model),
            FlopCounterMode(display=False) as counter, recorder,
        ):  # fmt: skip
            model.eval()(*by_position, **by_name)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    known = sum(layer.macs for layer in recorder.layers)
    other = max(0, counter.get_total_flops() // 2 - known)
    return Network(name, tuple(inputs), tuple(recorder.layers), tuple(recorder.ignored), other)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes a layer of each operation that multiplies matrices, named after the module in which it runs.

    It also follows which tensors are computed from the inputs: what is not is made of the network's weights.
    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.ignored: list[str] = []
        self._inside: list[tuple[str, bool, int]] = [("", False, 0)]
        self._times: dict[str, int] = {}
        self._computed = WeakIdKeyDictionary()
        for tensor in inputs:
            self._computed[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and note what it multiplies and what its results are made of."""
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        made = func(*args, **kwargs)
        operation = func._schema.name.partition("::")[2]
        for layer in layers_of(operation, args, kwargs, self._is_computed):
            path, whole, _ = self._inside[-1]
            self._add(replace(layer, name=path if whole and path else f"{path}.{layer.name}".lstrip(".")))
        if any(map(self._is_computed, _tensors((args, kwargs)))):
            # An operation in place returns the tensor that it changes.
            for one in _tensors(made):
                self._computed[one] = True
        return made

    def _is_computed(self, tensor: Tensor) -> bool:
        return tensor in self._computed

    def _add(self, layer: Layer) -> None:
        """A module that runs twice is two layers."""
        times = self._times[layer.name] = self._times.get(layer.name, 0) + 1
        self.layers.append(replace(layer, name=f"{layer.name}#{times}") if times > 1 else layer)

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know in which module each operation runs, and which modules multiply nothing."""
        handles = []
        for path, module in model.named_modules():
            # Compiled scripts take no hooks: what runs in them is named after the operation.
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles.append(module.register_forward_pre_hook(self._enter(path), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(path), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            whole = isinstance(module, _NAMED) or not list(module.children())
            self._inside.append((path, whole, len(self.layers)))

        return hook

    def _leave(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            *_, before = self._inside.pop()
            if list(module.children()) or len(self.layers) > before:
                return
            if isinstance(module, (*ACTIVATIONS, *POOLS)):
                self._add(_passed(path, module, (args, kwargs), output))
            elif not isinstance(module, FOLDED) and any(map(self._is_computed, _tensors(output))):
                self.ignored.append(f"{path} ({type(module).__name__})")

        return hook


def _passed(path: str, module: nn.Module, inputs: Any, output: Any) -> Layer:
    """A layer without multiplications, by the first tensor that goes in and the first that comes out."""
    before, after = _tensors(inputs)[0], _tensors(output)[0]
    kind = "pool" if isinstance(module, POOLS) else "activation"
    sides = (_side(before), _side(after)) if after.ndim == 4 else ((1, 1), (1, 1))
    return Layer(path, kind, _channels(before), _channels(after), in_side=sides[0], out_side=sides[1])


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


def _channels(tensor: Tensor) -> int:
    return int(tensor.shape[1]) if tensor.ndim > 1 else tensor.numel()


def _side(image: Tensor) -> tuple[int, int]:
    return int(image.shape[-2]), int(image.shape[-1])

"""Which products of a model stay digital: read off the classes of its layers and the code of their forward passes."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from lumoe.photonics.core.analog import Analog

_functional = nn.functional
# Products by the names that tensors have them under too.
_OF_TENSORS = ("matmul", "mm", "bmm", "mv", "dot", "addmm", "addmv", "addbmm", "baddbmm", "inner")
_PRODUCTS: dict[Any, str] = {
    **{getattr(torch, name): name for name in (*_OF_TENSORS, "einsum", "tensordot", "bilinear", "chain_matmul")},
    **{getattr(torch, f"conv{kind}{n}d"): f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)},
    torch.linalg.multi_dot: "multi_dot",
    _functional.linear: "linear",
    _functional.bilinear: "bilinear",
    _functional.scaled_dot_product_attention: "scaled_dot_product_attention",
    _functional.multi_head_attention_forward: "multi_head_attention_forward",
}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def digital_layers(model: nn.Module) -> dict[str, str]:
    """Return the path of each layer whose products stay digital, and why; the model itself is ``model``."""
    found = {}
    for name, layer in model.named_modules():
        if why := why_digital(layer):
            found[name or "model"] = why
    return found


def why_digital(layer: nn.Module) -> str:
    """Return why products of `layer` itself, without its children, stay digital; empty where none do."""
    if not convertible(layer):
        return _unconvertible(layer)
    if isinstance(layer, _RECURRENT):
        return "recurrent layers are not converted"
    kind = type(layer)
    known = {_PRODUCTS.get(function) for function in layer.products} if isinstance(layer, Analog) else set()
    names = sorted(called(kind) - known)
    return f"its forward pass calls {', '.join(names)} itself" if names else ""


def convertible(layer: nn.Module) -> bool:
    """Whether `layer` is of a sort whose products can be replaced, if it has any that are known."""
    return not _unconvertible(layer)


def _unconvertible(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by torch.jit, its products cannot be replaced"
    if isinstance(layer, LazyModuleMixin) and layer.has_uninitialized_params():
        return "it has no weights yet: run the model once before it is converted"
    if type(layer).__module__.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic")):
        return "quantised layers are not converted"
    if not isinstance(layer, Analog) and "core" in vars(layer) | layer._modules | layer._parameters | layer._buffers:
        return "it has a 'core' of its own" if called(type(layer)) else ""
    return ""


def called(kind: type[nn.Module]) -> set[str]:
    """Return the names of the products that the forward pass of a class outside of torch calls, ``@`` included."""
    return set(_read(kind.forward, kind, set()))


def _read(function: Any, kind: type, seen: set[Any]) -> Iterator[str]:
    """Yield the products in a function, in the methods of `kind` and in the functions that it names."""
    if not isinstance(function, FunctionType) or function in seen or _is_torchs(function):
        return
    seen.add(function)
    codes = [function.__code__]
    while codes:
        code = codes.pop()
        codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        before: Any = None  # what the instruction before has put on the stack, if known
        for step in dis.get_instructions(code):
            here: Any = None
            if step.opname == "BINARY_OP" and step.argrepr.startswith("@"):
                yield "@"
            elif step.opname == "LOAD_GLOBAL":
                here = function.__globals__.get(step.argval)
            elif step.opname.startswith("LOAD_FAST") and step.argval == "self":
                here = kind
            elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                if before is None and step.argval in _OF_TENSORS:
                    yield step.argval
                # Of an object, only classes and modules have attributes that are known before it runs.
                here = getattr(before, step.argval, None) if isinstance(before, type) or _is_module(before) else None
            if here is not None and _is_function(here) and here in _PRODUCTS:
                yield _PRODUCTS[here]
            elif isinstance(here, FunctionType):
                yield from _read(here, kind, seen)
            before = here


def _is_module(value: Any) -> bool:
    return isinstance(value, type(torch))


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _is_torchs(function: FunctionType) -> bool:
    module = function.__module__ or ""
    return module.split(".")[0] == "torch" or module.startswith("lumoe.photonics.core.")

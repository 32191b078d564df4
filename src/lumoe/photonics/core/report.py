"""What of a model computes on the analog core, what stays digital and why, and how much of the work each does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lumoe.photonics.core.analog import Analog
from lumoe.photonics.core.digital import why_digital


@dataclass(frozen=True)
class Converted:
    """One layer of a model.

    Attributes:
        name: its first path; the model itself is ``model``.
        kind: its class.
        photonic: whether it computes on the core.
        why: why products of it stay digital; empty where none do.
        ran: whether it ran in the forward pass; None without one.
        macs: multiply-accumulates of that pass on the core.
        digital_macs: those that were digital.
        share: both of these over all of the model's.
    """

    name: str
    kind: str
    photonic: bool
    why: str
    ran: bool | None = None
    macs: int = 0
    digital_macs: int = 0
    share: float = 0.0


def conversion_report(model: nn.Module, *inputs: Any, **named: Any) -> list[Converted]:
    """Return a row for each layer of `model` that is photonic, or that has products which stay digital.

    Args:
        model: what :func:`~lumoe.photonics.core.layers.to_photonic` returned, or any module.
        inputs, named: of one forward pass, which counts; without them products are only read off the code. The pass
            computes exactly, without gradients, and takes no noise.
    """
    layers = {id(layer): (name or "model", layer) for name, layer in model.named_modules()}
    counter = _Counter() if inputs or named else None
    if counter is not None:
        _count(model, counter, inputs, named)
    total = sum(sum(counts) for counts in counter.counts.values()) if counter else 0
    rows = []
    for key, (name, layer) in layers.items():
        macs, digital = counter.counts[key] if counter else (0, 0)
        why = why_digital(layer)
        if digital and not why:
            why = "it multiplies in ways that are not converted"
        if isinstance(layer, Analog) or why or digital:
            ran = key in counter.ran if counter else None
            share = (macs + digital) / total if total else 0.0
            rows.append(
                Converted(name, type(layer).__name__, isinstance(layer, Analog), why, ran, macs, digital, share)
            )
    return rows


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-accumulates of torch's operators: [on the core, digital] for the id of each layer."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: defaultdict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.ran: set[int] = set()
        self.within: list[int] = []
        self.analog = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = NotImplemented
        if func._overloadpacket not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                found = func.decompose(*args, **(kwargs or {}))
        if found is NotImplemented:
            found = func(*args, **(kwargs or {}))
        if (flops := flop_registry.get(func._overloadpacket)) is not None and self.within:
            self.counts[self.within[-1]][not self.analog] += int(flops(*args, **(kwargs or {}), out_val=found)) // 2
        return found

    @contextmanager
    def on_core(self) -> Iterator[None]:
        """What is counted here is on the core."""
        self.analog = True
        try:
            yield
        finally:
            self.analog = False


def _count(model: nn.Module, counter: _Counter, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
    def enter(layer: nn.Module, *_: Any) -> None:
        counter.within.append(id(layer))
        counter.ran.add(id(layer))

    def leave(*_: Any) -> None:
        counter.within.pop()

    handles = []
    for layer in model.modules():
        handles.append(layer.register_forward_pre_hook(enter, prepend=True))
        handles.append(layer.register_forward_hook(leave, always_call=True))
    # oneDNN's recurrent layers are one operator, which nothing counts.
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        with torch.no_grad(), Analog.counting(counter.on_core), counter:
            model(*inputs, **named)
    finally:
        torch._C._set_mkldnn_enabled(enabled)
        for handle in handles:
            handle.remove()

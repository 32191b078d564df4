"""What photonic layers share: a layer's own forward pass runs, and the products that it asks torch for are analog.

The rings follow the weights that a product is given, not an attribute of the layer: whatever a subclass or a
parametrization makes of its weights before the product is kept.
"""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lumoe.errors import UserError
from lumoe.photonics.core.core import Core, Weights, hold
from lumoe.photonics.core.fingerprint import fingerprint
from lumoe.photonics.core.product import modulate_inputs, multiply
from lumoe.photonics.core.readout import Draw
from lumoe.photonics.physics.limits import require_finite

# Products of a layer whose noise a recomputation (checkpointing) can find again.
_REMEMBERED_DRAWS = 4096
# Numbers draws in the order of products, over all layers.
_NUMBERS = itertools.count()


class Analog(nn.Module):
    """Stands before a float layer's class: ``class PhotonicLinear(Analog, nn.Linear)``.

    Its forward pass is the float layer's, with `products` in place of torch's functions. Rings are kept until a weight
    changes by as much as a bit. A recomputation during the backward pass finds its noise by its inputs: where one layer
    saw equal inputs several times, it gets the noise of the last.

    Attributes:
        products: the method that stands in for each of torch's functions; it is given the function and its arguments.
    """

    products: ClassVar[dict[Any, str]] = {}
    _counted: ClassVar[Callable[[], AbstractContextManager[None]] | None] = None

    # The number of the draw that was last found again.
    _recomputed: ClassVar[int] = -1

    core: Core
    _draw: Draw
    _held: dict[int, tuple[Hashable, Weights]]
    _draws: OrderedDict[Hashable, tuple[int, Draw]]
    _place: int

    def __init__(self, *args: Any, core: Core, stream: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_core(core, stream)

    def _set_core(self, core: Core, stream: int = 0) -> None:
        self.core, self._draw = core, Draw(core.seed, stream)
        self._held, self._draws, self._place = {}, OrderedDict(), 0

    @staticmethod
    @contextmanager
    def counting(around: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
        """Within, products are exact and take no noise, each in a context of its own that `around` gives."""
        before, Analog._counted = Analog._counted, around
        try:
            yield
        finally:
            Analog._counted = before

    def _set_options(self) -> None:
        """Take what this kind of layer can choose beside the core."""

    @classmethod
    def from_float(cls, layer: nn.Module, core: Core, *, stream: int = 0, **options: Any) -> Self:
        """Return the photonic layer that shares `layer`'s parameters."""
        made = cls.__new__(cls)
        # The dictionaries of parameters, buffers and hooks are its own, what they hold is shared.
        vars(made).update(
            {name: value.copy() if isinstance(value, dict) else value for name, value in vars(layer).items()}
        )
        made._set_core(core, stream)
        made._set_options(**options)
        return made

    def reseed(self, seed: int) -> None:
        """Restart the noise with `seed`."""
        self._draw = Draw(seed, self._draw.stream)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the float layer does, by analog products."""
        self._place = 0
        with InsteadOfTorch(self):
            return super().forward(*args, **kwargs)

    def _product(self, analog: Callable[..., Tensor], exact: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        """Return `analog(*operands)` with the gradient of `exact(*operands)`; both are bilinear, without a bias."""
        if Analog._counted is not None:
            with Analog._counted():
                return exact(*operands)
        if any(operand.numel() == 0 for operand in operands):
            return exact(*operands)
        if any(torch._C._functorch.is_functorch_wrapped_tensor(operand) for operand in operands):
            # The converters need numbers: as a function of its own, it is called below torch.func's levels.
            found: Tensor = _Outside.apply(analog, *operands)  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                found = analog(*operands)
        if not torch.is_grad_enabled():
            return found
        ideal = exact(*operands)
        return ideal + (found - ideal).detach() if ideal.requires_grad else found

    def _next_draw(self, *operands: Tensor) -> Draw:
        key = (self._place, *(fingerprint(operand) for operand in operands))
        recomputed = torch._C._current_graph_task_id() != -1  # a forward pass amid a backward pass
        if recomputed:
            # Inputs may differ by a rounding from those of a pass without gradients; the order of products is the same.
            later = (known for known in self._draws.values() if known[0] > Analog._recomputed)
            if (found := self._draws.get(key) or next(later, None)) is not None:
                Analog._recomputed = found[0]
                return found[1]
        drawn = self._draw
        self._draw = replace(drawn, call=drawn.call + 1)
        self._draws[key] = next(_NUMBERS), drawn
        self._draws.move_to_end(key)
        if len(self._draws) > _REMEMBERED_DRAWS:
            self._draws.popitem(last=False)
        return drawn

    def _remembered(self, weight: Tensor, make: Callable[[], Weights]) -> Weights:
        """What `make` gives for the weight of this pass's next product; kept while the weight's bits are."""
        found = fingerprint(weight)
        known = self._held.get(self._place)
        self._place += 1
        if known is None or known[0] != found:
            known = self._held[self._place - 1] = (found, make())
        return known[1]

    def _linear(self, function: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return input [..., C] · weight [K, C]ᵀ + bias."""
        if input.dim() == 0 or input.shape[-1] != weight.shape[-1]:
            raise UserError(f"input is {tuple(input.shape)}, but its last dimension must be {weight.shape[-1]}")
        result = self._product(self._rows, function, input, weight)
        return result if bias is None else result + bias

    def _rows(self, rows: Tensor, weight: Tensor) -> Tensor:
        require_finite("input", rows)
        draw = self._next_draw(rows)
        held = self._remembered(weight, lambda: hold(weight.detach()[None], self.core))
        flat = rows.reshape(-1, weight.shape[1]).T
        scale = flat.abs().max()[None].clamp_min(torch.finfo(flat.dtype).tiny)
        light = modulate_inputs(flat[None], self.core, scale)
        products, _ = multiply(held, light, self.core, draw, input_scale=scale)
        result = products[0].T.reshape(*rows.shape[:-1], weight.shape[0])
        # Attention looks at sequences by `view`.
        return result if rows.dim() == 2 else result.contiguous()

    def _between(self, function: Any, left: Tensor, right: Tensor) -> Tensor:
        """Return left [..., T, C] · right [..., C, S]; the rings are set to `right`, anew in every pass."""
        return self._product(self._pairs, torch.matmul, left, right)

    def _pairs(self, left: Tensor, right: Tensor) -> Tensor:
        require_finite("input", left)
        outer = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])  # type: ignore[no-untyped-call]
        inputs = left.expand(*outer, *left.shape[-2:]).reshape(-1, *left.shape[-2:]).mT.contiguous()
        weights = right.expand(*outer, *right.shape[-2:]).reshape(-1, *right.shape[-2:]).mT
        draw = self._next_draw(inputs, weights)
        scale = self.core.scales(inputs.abs().amax((1, 2)))
        light = modulate_inputs(inputs, self.core, scale[:, None, None])
        products, _ = multiply(hold(weights, self.core), light, self.core, draw, input_scale=scale)
        return products.mT.reshape(*outer, left.shape[-2], right.shape[-1]).contiguous()

    def extra_repr(self) -> str:
        """What the float layer says, and the channels."""
        said = super().extra_repr()
        return f"{said}{', ' if said else ''}channels={self.core.channels}"

    def __getstate__(self) -> dict[str, Any]:
        fresh = {"_held": {}, "_draws": OrderedDict(), "_draw": Draw(self.core.seed, self._draw.stream)}
        return {**self.__dict__, **fresh}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = memo[id(self)] = type(self).__new__(type(self))
        vars(made).update(copy.deepcopy(Analog.__getstate__(self), memo))
        return made


class InsteadOfTorch(TorchFunctionMode):
    """Calls a layer's methods in place of torch's functions; a method itself runs outside of this mode."""

    def __init__(self, layer: Analog) -> None:
        super().__init__()
        self.layer = layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = self.layer.products.get(func)
        if name is None:
            return func(*args, **(kwargs or {}))
        return getattr(self.layer, name)(func, *args, **(kwargs or {}))


class _Outside(torch.autograd.Function):
    """A function without derivatives, run on plain tensors."""

    @staticmethod
    def forward(run: Callable[..., Tensor], *operands: Tensor) -> Tensor:
        with torch.no_grad():
            return run(*operands)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        return (None,) * len(ctx.needs_input_grad)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> None:
        return None

    @staticmethod
    def vmap(info: Any, dims: Any, run: Any, *operands: Tensor) -> Any:
        raise UserError("a photonic layer cannot run under torch.vmap: give it the whole batch in one call")

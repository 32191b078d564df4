"""Drop-in layers that compute on the analog core, and `to_photonic` for a model.

The forward pass is the simulated hardware's; the backward pass is that of the exact layer, straight through every
converter and noise source, so a network can be trained or fine-tuned through the core.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lumoe.errors import UserError
from lumoe.photonics.core.analog import Analog
from lumoe.photonics.core.attention import AnalogScores, PhotonicMultiheadAttention
from lumoe.photonics.core.convolution import AnalogConvolution, AnalogTransposed, Call, tiling
from lumoe.photonics.core.core import Core
from lumoe.photonics.core.digital import called, convertible, digital_layers
from lumoe.photonics.core.winograd_conv import Tiling
from lumoe.photonics.devices import DeviceSet
from lumoe.photonics.physics.limits import require_count
from lumoe.photonics.physics.parameters import Physics, load_physics


class PhotonicConv1d(AnalogConvolution, nn.Conv1d):
    """`torch.nn.Conv1d` on microring weight banks; takes the same arguments and the `core`."""


class PhotonicConv2d(AnalogConvolution, nn.Conv2d):
    """`torch.nn.Conv2d` on microring weight banks; takes the same arguments and these.

    Args:
        core: its configuration.
        tile: m of Winograd's F(m×m, r×r), or None for im2col. Kernels of side 1, dilated and non-square ones always use
            im2col: Winograd saves nothing there.
        points: interpolation points, ``standard`` or ``better``.
    """

    def __init__(
        self, *args: Any, core: Core, tile: int | None = None, points: str = "better", stream: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(*args, core=core, stream=stream, **kwargs)
        self._set_options(tile=tile, points=points)

    def _set_options(self, *, tile: int | None = None, points: str = "better") -> None:
        if tile is not None:
            require_count("tile", tile, 1)
        self.tile, self.points = tile, points
        if self.tiling is not None:
            self.tiling.matrices(torch.zeros(()))  # an impossible tile fails here

    @property
    def tiling(self) -> Tiling | None:
        """How the convolution becomes Winograd's tiles; None for im2col."""
        call = Call(tuple(self.kernel_size), tuple(self.stride), tuple(self.dilation), self.groups)
        return tiling(call, self.tile, self.points)

    def extra_repr(self) -> str:
        """What Conv2d says, the channels and the tile."""
        tile = "" if self.tiling is None else f", tile={self.tiling.m}"
        return f"{super().extra_repr()}{tile}"


class PhotonicConv3d(AnalogConvolution, nn.Conv3d):
    """`torch.nn.Conv3d` on microring weight banks; takes the same arguments and the `core`."""


class PhotonicConvTranspose1d(AnalogTransposed, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` on microring weight banks; takes the same arguments and the `core`."""


class PhotonicConvTranspose2d(AnalogTransposed, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` on microring weight banks; takes the same arguments and the `core`."""


class PhotonicConvTranspose3d(AnalogTransposed, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` on microring weight banks; takes the same arguments and the `core`."""


class PhotonicLinear(Analog, nn.Linear):
    """`torch.nn.Linear` on microring weight banks; takes the same arguments and the `core`."""

    products: ClassVar[dict[Any, str]] = {nn.functional.linear: "_linear"}


class PhotonicBilinear(Analog, nn.Bilinear):
    """`torch.nn.Bilinear`: the product with the second input is analog, that with the first digital."""

    products: ClassVar[dict[Any, str]] = {nn.functional.bilinear: "_bilinear"}

    def _bilinear(
        self, function: Any, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        inner = self._linear(nn.functional.linear, input2, weight.flatten(0, 1))
        result: Tensor = (inner.reshape(*inner.shape[:-1], *weight.shape[:2]) * input1[..., None, :]).sum(-1)
        return result if bias is None else result + bias


# The photonic class of each float one, and of whatever derives from it.
_KINDS: dict[type[nn.Module], type[Analog]] = {
    nn.Conv1d: PhotonicConv1d,
    nn.Conv2d: PhotonicConv2d,
    nn.Conv3d: PhotonicConv3d,
    nn.ConvTranspose1d: PhotonicConvTranspose1d,
    nn.ConvTranspose2d: PhotonicConvTranspose2d,
    nn.ConvTranspose3d: PhotonicConvTranspose3d,
    nn.Linear: PhotonicLinear,
    nn.Bilinear: PhotonicBilinear,
    nn.MultiheadAttention: PhotonicMultiheadAttention,
}
# Those made for derived classes: one each.
_MADE: dict[type[nn.Module], type[Analog]] = {}


def _photonic_class(kind: type[nn.Module]) -> type[Analog] | None:
    """Return the class that runs the forward pass of `kind` by analog products; None where it has none to replace."""
    if kind in _KINDS:
        return _KINDS[kind]
    found = next((made for known, made in _KINDS.items() if issubclass(kind, known)), None)
    if found is None and "scaled_dot_product_attention" in called(kind):
        found = AnalogScores
    if kind in _MADE:
        return _MADE[kind]
    if found is None or issubclass(kind, Analog):
        return None
    made = type(f"Photonic{kind.__name__}", (found, kind), {"_float_class": kind, "__reduce_ex__": _reduce})
    return _MADE.setdefault(kind, made)


def _reduce(layer: Any, protocol: int) -> tuple[Any, ...]:
    """Pickle a layer of a class that was made here by the class that it was made of."""
    return _blank, (layer._float_class,), layer.__getstate__()


def _blank(kind: type[nn.Module]) -> Analog:
    made = _photonic_class(kind)
    assert made is not None
    return made.__new__(made)


def _convert(layer: nn.Module, core: Core, stream: int, options: dict[str, Any]) -> None:
    """Make a photonic layer of `layer` where it stands: all that share it, its hooks and parametrizations stay."""
    kind = type(layer)
    if parametrize.is_parametrized(layer):
        # The class that torch made of the float one is made of the photonic one instead.
        made = _photonic_class(kind.__bases__[0])
        assert made is not None
        kept = {k: v for k, v in vars(kind).items() if k not in ("__deepcopy__", "__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, (made,), kept)
    else:
        layer.__class__ = _photonic_class(kind)  # type: ignore[assignment]
    assert isinstance(layer, Analog)
    layer._set_core(core, stream)
    if isinstance(layer, PhotonicConv2d):
        layer._set_options(**options)


def _places(model: nn.Module) -> list[nn.Module]:
    """Return the layers to convert; plain `nn.Conv2d` and `nn.Linear` first: noise depends on a layer's number."""
    inner = {id(layer.out_proj) for layer in model.modules() if isinstance(layer, nn.MultiheadAttention)}
    found = []
    for layer in model.modules():
        kind = type(layer).__bases__[0] if parametrize.is_parametrized(layer) else type(layer)
        if id(layer) not in inner and _photonic_class(kind) is not None and convertible(layer):
            found.append(layer)
    return sorted(found, key=lambda layer: type(layer) not in (nn.Conv2d, nn.Linear))


def to_photonic(
    model: nn.Module,
    devices: str | Path | DeviceSet | Physics | Core = "moderate",
    *,
    tile: int | None = None,
    points: str = "better",
    strict: bool = False,
    **changes: Any,
) -> nn.Module:
    """Return a copy of `model` whose convolutions, linear layers and attention compute on the analog core.

    Args:
        model: any module. Converted are `nn.Conv1d` to `nn.Conv3d`, the transposed ones, `nn.Linear`, `nn.Bilinear`,
            `nn.MultiheadAttention`, classes derived from these, and `scaled_dot_product_attention` within other
            modules. Everything else stays digital.
        devices: a device set (all its imperfections on), its physics, or a core of your own.
        tile: m of Winograd's F(m×m, r×r), or None for im2col (PCNNA).
        points: Winograd's interpolation points, ``standard`` or ``better``.
        strict: refuse a model with products that stay digital; a warning (UserWarning) names them otherwise. They are
            read off the code: :func:`~lumoe.photonics.core.report.conversion_report` counts them in a forward pass.
        changes: fields of :class:`~lumoe.photonics.core.core.Core` that differ, such as ``channels=16, noise=2.0``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> noisy = to_photonic(model, "moderate", channels=16, weight_bits=6)
        >>> noisy(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Raises:
        UserError: an unknown device set or field, an impossible design, or with `strict` a layer that stays digital.
    """
    if unknown := set(changes) - set(Core.__dataclass_fields__):
        raise UserError(f"the core has no field '{sorted(unknown)[0]}'; it has {', '.join(Core.__dataclass_fields__)}")
    core = _core(devices, changes)
    copied = copy.deepcopy(model)
    for stream, layer in enumerate(_places(copied)):
        _convert(layer, core, stream, {"tile": tile, "points": points})
    for layer in copied.modules():
        # torch's fast path of these reads the weights past their layers.
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0
        elif isinstance(layer, nn.TransformerEncoder):
            layer.use_nested_tensor = False
    if left := digital_layers(copied):
        named = "; ".join(f"{name}: {why}" for name, why in left.items())
        if strict:
            raise UserError(f"to_photonic: products would stay digital ({named}); leave strict out to keep them so")
        warnings.warn(f"to_photonic: products stay digital ({named})", UserWarning, stacklevel=2)
    return copied


def _core(devices: str | Path | DeviceSet | Physics | Core, changes: dict[str, Any]) -> Core:
    if isinstance(devices, Core):
        return Core(**{**vars(devices), **changes})
    physics = devices if isinstance(devices, Physics) else load_physics(devices)
    return Core.real(physics, **changes)


def photonic_layers(model: nn.Module) -> list[Analog]:
    """Return the layers of `model` that compute on the core."""
    return [layer for layer in model.modules() if isinstance(layer, Analog)]


def reseed(model: nn.Module, seed: int) -> None:
    """Restart the noise of every photonic layer of `model` with `seed`."""
    require_count("seed", seed, 0)
    for layer in photonic_layers(model):
        layer.reseed(seed)


def set_core(model: nn.Module, **changes: Any) -> None:
    """Change fields of every photonic layer's core in place, such as ``set_core(model, noise=2.0)``."""
    for layer in photonic_layers(model):
        layer._set_core(_core(layer.core, changes), layer._draw.stream)

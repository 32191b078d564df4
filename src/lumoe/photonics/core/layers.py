"""Drop-in layers that compute on the analog core: `PhotonicConv2d`, `PhotonicLinear`, and `to_photonic` for a model.

The forward pass is the simulated hardware's; the backward pass is that of the exact layer, straight through every
converter and noise source, so a network can be trained or fine-tuned through the core.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lumoe.errors import UserError
from lumoe.photonics.core import winograd_conv
from lumoe.photonics.core.core import Core, Weights, hold
from lumoe.photonics.core.product import Light, modulate_inputs, multiply
from lumoe.photonics.core.readout import Draw
from lumoe.photonics.core.winograd_conv import Tiling
from lumoe.photonics.devices import DeviceSet
from lumoe.photonics.physics.limits import require_count, require_finite
from lumoe.photonics.physics.parameters import Physics, load_physics

# Elements of unfolded input that are held at once; larger batches go through in parts.
_UNFOLDED_ELEMENTS = 1 << 24


class _Analog:
    """What both layers share: the held weights, remembered until the weight changes, and the place in the noise."""

    core: Core
    weight: Tensor
    _draw: Draw
    _held: tuple[tuple[Any, ...], Weights] | None

    def _set_core(self, core: Core, stream: int = 0) -> None:
        self.core, self._held, self._draw = core, None, Draw(core.seed, stream)

    def reseed(self, seed: int) -> None:
        """Restart the noise with `seed`."""
        self._draw = Draw(seed, self._draw.stream)

    def _next_draw(self) -> Draw:
        drawn = self._draw
        self._draw = replace(drawn, call=drawn.call + 1)
        return drawn

    def _remembered(self, make: Any) -> Weights:
        version = -1 if self.weight.is_inference() else self.weight._version
        key = (version, self.weight.data_ptr(), self.weight.device, self.weight.dtype, self.core)
        if self._held is None or self._held[0] != key:
            self._held = (key, make())
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None, "_draw": Draw(self.core.seed, self._draw.stream)}


class PhotonicConv2d(_Analog, nn.Conv2d):
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
        super().__init__(*args, **kwargs)
        self._set_core(core, stream)
        self.tiling: Tiling | None = None
        square = len({*self.kernel_size}) == 1 and len({*self.stride}) == 1
        if tile is not None:
            require_count("tile", tile, 1)
            if square and self.dilation == (1, 1) and self.kernel_size[0] > self.stride[0]:
                self.tiling = Tiling(tile, self.kernel_size[0], self.stride[0], self.groups, points)
                self.tiling.matrices(torch.zeros(()))  # an impossible tile fails here

    @classmethod
    def from_float(cls, layer: nn.Conv2d, core: Core, **options: Any) -> PhotonicConv2d:
        """Return the photonic layer that shares `layer`'s parameters."""
        made = cls(
            layer.in_channels,
            layer.out_channels,
            layer.kernel_size,
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
            layer.bias is not None,
            layer.padding_mode,
            core=core,
            device="meta",
            **options,
        )
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of [B, C, H, W] or [C, H, W]."""
        if input.dim() not in (3, 4) or input.shape[-3] != self.in_channels:
            raise UserError(
                f"input is {tuple(input.shape)}, but must be [images, {self.in_channels}, height, width] or one image"
            )
        require_finite("input", input)
        if input.dim() == 3:
            return self.forward(input[None])[0]
        result = _straight_through(self._analog(input), lambda: self._conv_forward(input, self.weight, None))
        return result if self.bias is None else result + self.bias[:, None, None]

    @torch.no_grad()
    def _analog(self, images: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = nn.functional.pad(images, self._reversed_padding_repeated_twice, mode)
        height, width = (
            (size - d * (k - 1) - 1) // s + 1
            for size, k, s, d in zip(padded.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True)
        )
        if min(height, width) < 1:
            raise UserError(f"input is {tuple(images.shape)}, smaller than the kernel {self.kernel_size}")
        if self.tiling is not None:
            tiling = self.tiling
            held = self._remembered(lambda: winograd_conv.hold_taps(self.weight, tiling, self.core))
            return winograd_conv.convolve(padded, held, tiling, self.core, (height, width), self._next_draw())
        return self._unfolded(padded, height, width)

    def _unfolded(self, padded: Tensor, height: int, width: int) -> Tensor:
        groups, locations = self.groups, height * width
        held = self._remembered(
            lambda: hold(self.weight.detach().reshape(groups, self.out_channels // groups, -1), self.core)
        )
        scale = self.core.scales(padded.reshape(padded.shape[0], groups, -1).abs().amax((0, 2)))
        per_channel = scale.repeat_interleave(self.in_channels // groups)[:, None, None]
        light = modulate_inputs(padded, self.core, per_channel)
        images = max(1, _UNFOLDED_ELEMENTS // (held.inputs * groups * locations))
        detector_scale, parts = None, []
        for part in torch.split(light.power, images):
            products, detector_scale = multiply(
                held,
                Light(self._columns(part, held, height, width), light.signed),
                self.core,
                self._next_draw(),
                input_scale=scale,
                detector_scale=detector_scale,
            )
            shaped = products.reshape(self.out_channels, len(part), height, width)
            parts.append(shaped.transpose(0, 1))
        return torch.cat(parts)

    def _columns(self, padded: Tensor, held: Weights, height: int, width: int) -> Tensor:
        """Unfold padded images to [groups, channels of all banks, locations], in one copy; spare channels are dark."""
        images, channels = padded.shape[0], self.in_channels // self.groups
        down, across = (padded.stride(axis) for axis in (2, 3))
        windows = padded.as_strided(
            (self.groups, channels, *self.kernel_size, images, height, width),
            (channels * padded.stride(1), padded.stride(1), self.dilation[0] * down, self.dilation[1] * across,
             padded.stride(0), self.stride[0] * down, self.stride[1] * across),
        )  # fmt: skip
        columns = padded.new_empty(self.groups, held.channels, images * height * width)
        columns[:, : held.inputs].view(windows.shape).copy_(windows)
        columns[:, held.inputs :] = 0
        return columns

    def extra_repr(self) -> str:
        """What Conv2d says, the channels and the tile."""
        tile = "" if self.tiling is None else f", tile={self.tiling.m}"
        return f"{nn.Conv2d.extra_repr(self)}, channels={self.core.channels}{tile}"  # type: ignore[no-untyped-call]


class PhotonicLinear(_Analog, nn.Linear):
    """`torch.nn.Linear` on microring weight banks; takes the same arguments and the `core`."""

    def __init__(self, *args: Any, core: Core, stream: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_core(core, stream)

    @classmethod
    def from_float(cls, layer: nn.Linear, core: Core, **options: Any) -> PhotonicLinear:
        """Return the photonic layer that shares `layer`'s parameters."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, core=core, device="meta", **options)
        made.weight, made.bias = layer.weight, layer.bias
        return made.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """Return the product with [..., in_features]."""
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise UserError(f"input is {tuple(input.shape)}, but its last dimension must be {self.in_features}")
        require_finite("input", input)
        result = _straight_through(self._analog(input), lambda: nn.functional.linear(input, self.weight))
        return result if self.bias is None else result + self.bias

    @torch.no_grad()
    def _analog(self, rows: Tensor) -> Tensor:
        held = self._remembered(lambda: hold(self.weight.detach()[None], self.core))
        flat = rows.reshape(-1, self.in_features).T
        scale = flat.abs().max()[None].clamp_min(torch.finfo(flat.dtype).tiny)
        light = modulate_inputs(flat[None], self.core, scale)
        products, _ = multiply(held, light, self.core, self._next_draw(), input_scale=scale)
        return products[0].T.reshape(*rows.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """What Linear says, and the channels."""
        return f"{super().extra_repr()}, channels={self.core.channels}"


def _straight_through(analog: Tensor, exact: Any) -> Tensor:
    """Return `analog` with the gradient of what `exact` computes."""
    if not torch.is_grad_enabled():
        return analog
    ideal: Tensor = exact()
    return ideal + (analog - ideal).detach() if ideal.requires_grad else analog


def to_photonic(
    model: nn.Module,
    devices: str | Path | DeviceSet | Physics | Core = "moderate",
    *,
    tile: int | None = None,
    points: str = "better",
    **changes: Any,
) -> nn.Module:
    """Return a copy of `model` whose convolutions and linear layers compute on the analog core.

    Args:
        model: any module; every `nn.Conv2d` and `nn.Linear` in it is replaced, everything else stays digital.
        devices: a device set (all its imperfections on), its physics, or a core of your own.
        tile: m of Winograd's F(m×m, r×r), or None for im2col (PCNNA).
        points: Winograd's interpolation points, ``standard`` or ``better``.
        changes: fields of :class:`~lumoe.photonics.core.core.Core` that differ, such as ``channels=16, noise=2.0``.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
        >>> noisy = to_photonic(model, "moderate", channels=16, weight_bits=6)
        >>> noisy(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])

    Raises:
        UserError: an unknown device set or field, or an impossible design.
    """
    if unknown := set(changes) - set(Core.__dataclass_fields__):
        raise UserError(f"the core has no field '{sorted(unknown)[0]}'; it has {', '.join(Core.__dataclass_fields__)}")
    core = _core(devices, changes)
    copied = copy.deepcopy(model)
    places = [(name, layer) for name, layer in copied.named_modules() if type(layer) in (nn.Conv2d, nn.Linear)]
    for stream, (name, layer) in enumerate(places):
        made: nn.Module
        if isinstance(layer, nn.Conv2d):
            made = PhotonicConv2d.from_float(layer, core, tile=tile, points=points, stream=stream)
        else:
            assert isinstance(layer, nn.Linear)
            made = PhotonicLinear.from_float(layer, core, stream=stream)
        if not name:
            return made
        parent, _, child = name.rpartition(".")
        setattr(copied.get_submodule(parent), child, made)
    return copied


def _core(devices: str | Path | DeviceSet | Physics | Core, changes: dict[str, Any]) -> Core:
    if isinstance(devices, Core):
        return Core(**{**vars(devices), **changes})
    physics = devices if isinstance(devices, Physics) else load_physics(devices)
    return Core.real(physics, **changes)


def photonic_layers(model: nn.Module) -> list[PhotonicConv2d | PhotonicLinear]:
    """Return the layers of `model` that compute on the core."""
    return [layer for layer in model.modules() if isinstance(layer, PhotonicConv2d | PhotonicLinear)]


def reseed(model: nn.Module, seed: int) -> None:
    """Restart the noise of every photonic layer of `model` with `seed`."""
    require_count("seed", seed, 0)
    for layer in photonic_layers(model):
        layer.reseed(seed)


def set_core(model: nn.Module, **changes: Any) -> None:
    """Change fields of every photonic layer's core in place, such as ``set_core(model, noise=2.0)``."""
    for layer in photonic_layers(model):
        layer._set_core(_core(layer.core, changes), layer._draw.stream)

"""Convolutions of one, two and three dimensions, and transposed ones, as analog products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lumoe.errors import UserError
from lumoe.photonics.core import winograd_conv
from lumoe.photonics.core.analog import Analog
from lumoe.photonics.core.core import Weights, hold
from lumoe.photonics.core.product import Light, modulate_inputs, multiply
from lumoe.photonics.core.winograd_conv import Tiling
from lumoe.photonics.physics.limits import require_finite

# Elements of unfolded input that are held at once; larger batches go through in parts.
_UNFOLDED_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Call:
    """The numbers of one convolution: one per dimension, and the groups."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def reach(self) -> tuple[int, ...]:
        """Sides of the window, less 1."""
        return tuple(d * (k - 1) for k, d in zip(self.kernel, self.dilation, strict=True))


def tiling(call: Call, tile: int | None, points: str) -> Tiling | None:
    """Return Winograd's tiling, or None where im2col is used: nothing is saved there, or it was not asked for."""
    square = len(call.kernel) == 2 and len({*call.kernel}) == 1 and len({*call.stride}) == 1
    if tile is None or not square or {*call.dilation} != {1} or call.kernel[0] <= call.stride[0]:
        return None
    return Tiling(tile, call.kernel[0], call.stride[0], call.groups, points)


class AnalogConvolution(Analog):
    """Stands in for ``torch.conv1d``, ``conv2d`` and ``conv3d``."""

    products: ClassVar[dict[Any, str]] = {getattr(torch, f"conv{rank}d"): "_convolution" for rank in (1, 2, 3)}
    tile: int | None = None
    points: str = "better"

    def _convolution(
        self, function: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
    ) -> Tensor:
        """Return the convolution of [B, C, ...] or [C, ...]."""
        rank, groups = weight.dim() - 2, _argument("groups", more, named, 3, 1)
        stride, dilation = (
            _several(_argument(name, more, named, place, 1), rank) for name, place in (("stride", 0), ("dilation", 2))
        )
        call = Call(tuple(weight.shape[2:]), stride, dilation, groups)
        images = _images(input, rank, weight.shape[1] * groups)
        padding = _argument("padding", more, named, 1, 0)
        pads = _pads(padding, call)
        sides = [size + sum(pair) for size, pair in zip(images.shape[2:], pads, strict=True)]
        if images.numel() and any(side <= reach for side, reach in zip(sides, call.reach, strict=True)):
            raise UserError(f"input is {tuple(images.shape)}, smaller than the kernel {call.kernel}")

        def exact(images: Tensor, weight: Tensor) -> Tensor:
            found: Tensor = function(images, weight, None, stride, padding, dilation, groups)
            return found

        def analog(images: Tensor, weight: Tensor) -> Tensor:
            padded = nn.functional.pad(images, [side for pair in reversed(pads) for side in pair])
            return self._convolved(padded, weight, call)

        return _finish(self._product(analog, exact, images, weight), bias, input)

    def _convolved(self, padded: Tensor, weight: Tensor, call: Call) -> Tensor:
        require_finite("input", padded)
        size = [
            (side - reach - 1) // stride + 1
            for side, reach, stride in zip(padded.shape[2:], call.reach, call.stride, strict=True)
        ]
        tiles = tiling(call, self.tile, self.points)
        if tiles is None:
            return self._unfolded(padded, weight, call, size)
        draw = self._next_draw(padded)
        held = self._remembered(weight, lambda: winograd_conv.hold_taps(weight, tiles, self.core))
        return winograd_conv.convolve(padded, held, tiles, self.core, (size[0], size[1]), draw)

    def _unfolded(self, padded: Tensor, weight: Tensor, call: Call, size: Sequence[int]) -> Tensor:
        groups, outputs = call.groups, weight.shape[0]
        held, scale, light = self._lit(padded, weight.reshape(groups, outputs // groups, -1), weight)
        images = max(1, _UNFOLDED_ELEMENTS // (held.inputs * groups * math.prod(size)))
        detector_scale, parts = None, []
        for part in torch.split(light.power, images):
            products, detector_scale = multiply(
                held,
                Light(_columns(part, held, call, size), light.signed),
                self.core,
                self._next_draw(part),
                input_scale=scale,
                detector_scale=detector_scale,
            )
            shaped = products.reshape(outputs, len(part), *size)
            parts.append(shaped.transpose(0, 1))
        return torch.cat(parts)

    def _lit(self, images: Tensor, grouped: Tensor, weight: Tensor) -> tuple[Weights, Tensor, Light]:
        """Return rings set to `grouped` weights [G, K, C], the full scale of each group of inputs, and their light."""
        groups, channels = grouped.shape[0], images.shape[1]
        held = self._remembered(weight, lambda: hold(grouped.detach(), self.core))
        scale = self.core.scales(images.reshape(images.shape[0], groups, -1).abs().amax((0, 2)))
        per_channel = scale.repeat_interleave(channels // groups).reshape(-1, *[1] * (images.dim() - 2))
        return held, scale, modulate_inputs(images, self.core, per_channel)


class AnalogTransposed(AnalogConvolution):
    """Stands in for ``torch.conv_transpose1d``, ``conv_transpose2d`` and ``conv_transpose3d``.

    Each location's channels are multiplied by the kernel's weights; where windows overlap, the sum is digital.
    """

    products: ClassVar[dict[Any, str]] = {getattr(torch, f"conv_transpose{rank}d"): "_transposed" for rank in (1, 2, 3)}

    def _transposed(
        self, function: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *more: Any, **named: Any
    ) -> Tensor:
        """Return the transposed convolution of [B, C, ...] or [C, ...]."""
        rank, groups = weight.dim() - 2, _argument("groups", more, named, 3, 1)
        stride, padding, output_padding, dilation = (
            _several(_argument(name, more, named, place, default), rank)
            for name, place, default in (
                ("stride", 0, 1),
                ("padding", 1, 0),
                ("output_padding", 2, 0),
                ("dilation", 4, 1),
            )
        )
        call = Call(tuple(weight.shape[2:]), stride, dilation, groups)
        images = _images(input, rank, weight.shape[0])

        def exact(images: Tensor, weight: Tensor) -> Tensor:
            found: Tensor = function(images, weight, None, stride, padding, output_padding, groups, dilation)
            return found

        def analog(images: Tensor, weight: Tensor) -> Tensor:
            like = exact(images[:1].to("meta"), weight.to("meta"))
            return self._spread(images, weight, call, (like.shape, padding))

        return _finish(self._product(analog, exact, images, weight), bias, input)

    def _spread(self, images: Tensor, weight: Tensor, call: Call, wanted: tuple[Any, tuple[int, ...]]) -> Tensor:
        require_finite("input", images)
        draw, groups, count = self._next_draw(images), call.groups, len(images)
        place = math.prod(call.kernel)
        # [C, K/groups, kernel] to [groups, K/groups · kernel, C/groups].
        grouped = weight.reshape(groups, weight.shape[0] // groups, -1).mT
        held, scale, light = self._lit(images, grouped, weight)
        lit = light.power.reshape(count, groups, weight.shape[0] // groups, -1).permute(1, 2, 0, 3)
        products, _ = multiply(
            held, Light(lit.reshape(groups, held.inputs, -1), light.signed), self.core, draw, input_scale=scale
        )
        (shape, padding), size = wanted, images.shape[2:]
        parts = products.reshape(shape[1], place, count, *size).movedim(2, 0)
        spread = [max(s * (n - 1) + r + 1, p + w) for s, n, r, p, w in
                  zip(call.stride, size, call.reach, padding, shape[2:], strict=True)]  # fmt: skip
        whole = parts.new_zeros(count, shape[1], *spread)
        for number, tap in enumerate(itertools.product(*map(range, call.kernel))):
            window = [slice(t * d, t * d + s * (n - 1) + 1, s) for t, d, s, n in
                      zip(tap, call.dilation, call.stride, size, strict=True)]  # fmt: skip
            whole[(slice(None), slice(None), *window)] += parts[:, :, number]
        cut = [slice(p, p + w) for p, w in zip(padding, shape[2:], strict=True)]
        return whole[(slice(None), slice(None), *cut)].contiguous()


def _columns(padded: Tensor, held: Weights, call: Call, size: Sequence[int]) -> Tensor:
    """Unfold padded images to [groups, channels of all banks, locations], in one copy; spare channels are dark."""
    images, channels = padded.shape[0], padded.shape[1] // call.groups
    steps = padded.stride()[2:]
    windows = padded.as_strided(
        (call.groups, channels, *call.kernel, images, *size),
        (
            channels * padded.stride(1),
            padded.stride(1),
            *(d * step for d, step in zip(call.dilation, steps, strict=True)),
            padded.stride(0),
            *(s * step for s, step in zip(call.stride, steps, strict=True)),
        ),
    )
    columns = padded.new_empty(call.groups, held.channels, images * math.prod(size))
    columns[:, : held.inputs].view(windows.shape).copy_(windows)
    columns[:, held.inputs :] = 0
    return columns


def _argument(name: str, more: Sequence[Any], named: dict[str, Any], place: int, default: Any) -> Any:
    return more[place] if len(more) > place else named.get(name, default)


def _several(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * rank if len(values) == 1 else values


def _images(input: Tensor, rank: int, channels: int) -> Tensor:
    """Return the input with its axis of images.

    Raises:
        UserError: it has another number of axes, or of channels.
    """
    if input.dim() not in (rank + 1, rank + 2) or input.shape[-rank - 1] != channels:
        axes = ", ".join(("depth", "height", "width")[-rank:]) if rank > 1 else "length"
        raise UserError(f"input is {tuple(input.shape)}, but must be [images, {channels}, {axes}] or one image")
    return input if input.dim() == rank + 2 else input[None]


def _pads(padding: Any, call: Call) -> list[tuple[int, int]]:
    """What is added before and after each axis."""
    if padding == "valid":
        padding = 0
    if padding == "same":
        return [(reach // 2, reach - reach // 2) for reach in call.reach]
    return [(side, side) for side in _several(padding, len(call.kernel))]


def _finish(result: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    """Return the result with the bias, and without the axis of images where the input had none."""
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * (result.dim() - 2))
    return result if input.dim() == result.dim() else result[0]

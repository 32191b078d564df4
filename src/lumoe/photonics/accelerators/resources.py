"""How the times of an accelerator's resources add up: what streams overlaps, what prepares comes before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from lumoe.photonics.network.shapes import Array

Names = npt.NDArray[np.str_]


def aligned(parts: Mapping[str, Array]) -> dict[str, Array]:
    """Return all parts in the shape to which they broadcast together."""
    width = np.broadcast_shapes(*(np.shape(part) for part in parts.values()))
    return {name: np.broadcast_to(part, width) for name, part in parts.items()}


def total_time(times: Mapping[str, Array], streams: Sequence[str], preparations: Sequence[str]) -> tuple[Array, Names]:
    """Return the time [L, P] in seconds and the name of the resource that takes most of it, [L, P].

    Args:
        times: of each resource alone, [L, P] each, in seconds.
        streams: resources that work at the same time: the slowest bounds the layer.
        preparations: what must happen before: it adds.
    """
    total = np.max([times[name] for name in streams], axis=0)
    for name in preparations:
        total = total + times[name]
    names = np.array([*streams, *preparations])
    return total, names[np.argmax([times[name] for name in names], axis=0)]


def busiest(seconds: Array, limits: Names) -> str:
    """Return the resource that limits most of a network's time; of equals the first in the alphabet.

    Args:
        seconds: of each layer, [L].
        limits: the resource that limits each layer, [L].
    """
    return str(max(np.unique(limits), key=lambda name: seconds[limits == name].sum()))

"""The accelerators behind one interface: what a command or a sweep needs to know of each.

A further one is a module with its closed form, an entry here and, to be simulated, one in `simulation.jobs`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from lumoe.errors import UserError, nearest
from lumoe.photonics.accelerators import feasibility, pcnna, winograd
from lumoe.photonics.accelerators.checks import require_known, require_switches
from lumoe.photonics.accelerators.feasibility import attainable_bits
from lumoe.photonics.accelerators.tiling import check_tiles
from lumoe.photonics.devices import Values
from lumoe.photonics.network.shapes import Array, ConvolutionShapes

# What bounds the bits of an output of PCNNA beside its detectors.
_PCNNA_BITS = ("adc_bits", "weight_bits", "data_bits")


@dataclass(frozen=True)
class Estimate:
    """What L layers cost on P designs.

    Attributes:
        time_s: per image, [L, P].
        limit: the resource that takes most of the time, [L, P].
        times_s: by resource, energy_j per image and area_m2 by component, [L, P] each.
        detector_bits: what lasers and detectors can resolve, [L, P].
        bits: what an output carries behind converters, weights and transforms too, [L, P].
        utilisation: share of the wavelengths, and of the kernels beside them, that a pass can serve and the layer uses,
            [L, P].
    """

    time_s: Array
    limit: npt.NDArray[np.str_]
    times_s: dict[str, Array]
    energy_j: dict[str, Array]
    area_m2: dict[str, Array]
    detector_bits: Array
    bits: Array
    utilisation: Array

    @property
    def total_time_s(self) -> Array:
        """Time per image of all layers, one after another, [P]."""
        return np.asarray(self.time_s.sum(axis=0), dtype=float)

    @property
    def total_energy_j(self) -> Array:
        """Energy per image of all layers and components, [P]."""
        return np.asarray(np.sum([part.sum(axis=0) for part in self.energy_j.values()], axis=0), dtype=float)

    @property
    def total_area_m2(self) -> Array:
        """Area, [P]: of each component what the layer that needs most of it needs."""
        return np.asarray(np.sum([part.max(axis=0) for part in self.area_m2.values()], axis=0), dtype=float)

    @property
    def least_bits(self) -> Array:
        """Bits of the layer that has fewest, [P]."""
        return np.asarray(self.bits.min(axis=0), dtype=float)


@dataclass(frozen=True)
class Accelerator:
    """What there is to know of an accelerator.

    Attributes:
        name: as on the command line.
        devices: the device set that it uses unless told otherwise.
        choices: names of the design choices, with what they are unless chosen (None: what the physics allows).
        evaluate: shapes, device values and choices to an estimate; values and choices may be arrays [P].
    """

    name: str
    devices: str
    choices: Mapping[str, float | None]
    evaluate: Callable[[ConvolutionShapes, Values, Values], Estimate]


def accelerator(name: str) -> Accelerator:
    """Return an accelerator by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in ACCELERATORS:
        raise UserError(f"unknown design '{name}'{nearest(name, ACCELERATORS)}")
    return ACCELERATORS[name]


def winograd_design(choices: Values) -> winograd.Design:
    """Return the Winograd accelerator's design from choices by name.

    Raises:
        UserError: a choice is out of range.
    """
    return winograd.Design(**choices).check()


def pcnna_design(choices: Values) -> pcnna.Design:
    """Return PCNNA's design from choices by name.

    Raises:
        UserError: a switch is neither 0 nor 1, differs between the designs of a sweep, or a choice is out of range.
    """
    switches = {f"bound_{name}": name for name in pcnna.BOUNDS}
    require_switches(choices, switches)
    for switch in switches:
        if np.unique(choices[switch]).size > 1:
            raise UserError(
                f"{switch} must be the same for all designs of a sweep; sweep once with it and once without"
            )
    bounds = frozenset(name for switch, name in switches.items() if np.all(choices[switch]))
    return pcnna.Design(
        **{name: choices[name] for name in ("batch", "channels", "in_time", "adcs")}, bounds=bounds
    ).check()


def _pcnna(shapes: ConvolutionShapes, values: Values, choices: Values) -> Estimate:
    pcnna.NEEDS.check(values)
    feasibility.NEEDS.check(values)
    require_known(values, _PCNNA_BITS, "PCNNA")
    design = pcnna_design(choices)
    times = pcnna.resource_times(shapes, values, design)
    time, limit = pcnna.total_time(times, design)
    lit = pcnna.colours(shapes, design)
    resolved = attainable_bits(values, lit, shapes.kernels, values["clock"])
    shape = np.broadcast_shapes(time.shape, resolved.shape)
    bits = np.minimum.reduce(np.broadcast_arrays(resolved, *(values[name] for name in _PCNNA_BITS)))
    return Estimate(
        np.broadcast_to(time, shape),
        np.broadcast_to(limit, shape),
        times,
        pcnna.energy(shapes, values, design, np.broadcast_to(time, shape)),
        pcnna.area(shapes, values, design),
        np.broadcast_to(resolved, shape),
        np.broadcast_to(bits, shape),
        np.broadcast_to(pcnna.utilisation(shapes, design), shape),
    )


def _winograd(shapes: ConvolutionShapes, values: Values, choices: Values) -> Estimate:
    winograd.NEEDS.check(values)
    feasibility.NEEDS.check(values)
    design = winograd_design(choices)
    check_tiles(shapes, [int(tile) for tile in np.unique(design.tile)])
    times = winograd.resource_times(shapes, values, design)
    time, limit = winograd.total_time(times)
    resolved = attainable_bits(values, values["channels"], values["kernels"], values["clock"])
    return Estimate(
        time,
        limit,
        times,
        winograd.energy(shapes, values, design, time),
        winograd.area(shapes, values, design),
        np.broadcast_to(resolved, time.shape),
        np.broadcast_to(winograd.output_bits(shapes, values, design, resolved), time.shape),
        np.broadcast_to(winograd.utilisation(shapes, values, design), time.shape),
    )


PCNNA = Accelerator(
    "pcnna",
    "pcnna",
    {"batch": 1.0, "channels": None, "in_time": 0.0, "adcs": np.inf, **{f"bound_{x}": 1.0 for x in pcnna.BOUNDS}},
    _pcnna,
)
WINOGRAD = Accelerator(
    "winograd",
    "moderate",
    {field.name: float(field.default) for field in fields(winograd.Design)} | {"memory": 1.0},  # type: ignore[arg-type]
    _winograd,
)
ACCELERATORS: Mapping[str, Accelerator] = {"pcnna": PCNNA, "winograd": WINOGRAD}

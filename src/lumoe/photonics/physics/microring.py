r"""An add-drop microring in power form: what leaves its through and drop ports.

::

    drop  <---- r2 ----  add
              ( a )           a: amplitude kept per round trip
    input ----  r1 ----> through

With the round-trip phase φ, the self-couplings r1, r2 and P = r1·r2·a, D = 1 − 2P·cosφ + P²:

* through T_t = ((r2·a)² − 2P·cosφ + r1²) / D
* drop T_d = (1 − r1²)(1 − r2²)·a / D

Equations: Bogaerts et al., "Silicon microring resonators", Laser & Photonics Reviews 6, 47 (2012). Every function is
elementwise and differentiable; arguments broadcast. Phases are in radians, lengths in metres.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lumoe.errors import UserError
from lumoe.photonics.physics.limits import require_between, require_finite, require_positive

FloatOrTensor = TypeVar("FloatOrTensor", float, Tensor)


def round_trip_phase(
    *, wavelength_m: Tensor, radius_m: float, effective_index: float, group_index: float, centre_m: float
) -> Tensor:
    """Return φ = 2π·n_eff(λ)·2πR/λ with n_eff(λ) = n_0 − (λ − λ_0)(n_g − n_0)/λ_0, first-order dispersion.

    Args:
        wavelength_m: vacuum wavelengths λ, any shape.
        effective_index: n_0, at the wavelength `centre_m` (λ_0).
        group_index: n_g.
    """
    _check_lengths(wavelength_m=wavelength_m, radius_m=radius_m, group_index=group_index, centre_m=centre_m)
    length = 2 * math.pi * radius_m
    # n_eff/λ collected in powers of 1/λ: one division, no intermediate spectra.
    return (2 * math.pi * length * group_index) / wavelength_m - (
        2 * math.pi * length * (group_index - effective_index) / centre_m
    )


def through(phase: Tensor, *, r1: float | Tensor, r2: float | Tensor, loss: float | Tensor) -> Tensor:
    """Return the power transmission T_t from input to through port, in [0, 1].

    Args:
        phase: round-trip phase φ, any shape.
        r1: amplitude self-coupling of the input bus, in (0, 1).
        r2: amplitude self-coupling of the drop bus, in (0, 1).
        loss: amplitude a kept per round trip, in (0, 1]; 1 is a ring without loss.

    Raises:
        UserError: (a ValueError) a coupling or the loss is outside, or a phase is NaN or infinite.
    """
    _check_ring(r1, r2, loss)
    require_finite("phase", phase)
    product = r1 * r2 * loss
    interference = torch.cos(phase) * (2 * product)
    return ((r2 * loss) ** 2 + r1**2 - interference) / (1 + product**2 - interference)


def drop(phase: Tensor, *, r1: float | Tensor, r2: float | Tensor, loss: float | Tensor) -> Tensor:
    """Return the power transmission T_d from input to drop port, in [0, 1]; arguments as in :func:`through`."""
    _check_ring(r1, r2, loss)
    require_finite("phase", phase)
    product = r1 * r2 * loss
    return ((1 - r1**2) * (1 - r2**2) * loss) / (1 + product**2 - torch.cos(phase) * (2 * product))


def weight(phase: Tensor, *, r1: float | Tensor, r2: float | Tensor, loss: float | Tensor) -> Tensor:
    """Return w = T_d − T_t, what a balanced photodiode pair reads from one ring; arguments as in :func:`through`."""
    _check_ring(r1, r2, loss)
    require_finite("phase", phase)
    product = r1 * r2 * loss
    interference = torch.cos(phase) * (2 * product)
    constant = (1 - r1**2) * (1 - r2**2) * loss - (r2 * loss) ** 2 - r1**2
    return (constant + interference) / (1 + product**2 - interference)


def half_phase_sine(target: Tensor, *, r1: float, r2: float, loss: float) -> Tensor:
    """Return sin(φ/2) of the detuning at which :func:`weight` equals `target`; not range-checked.

    The inverse cosφ = [w(1 + P²) − K + S] / (2P(1 + w)), with K = (1−r1²)(1−r2²)a and S = (r2·a)² + r1², written as
    sin²(φ/2) = (1 − P)²(w_max − w) / (4P(1 + w)): the same, without the cancellation near resonance.
    """
    product = r1 * r2 * loss
    highest = ((1 - r1**2) * (1 - r2**2) * loss - (r2 * loss) ** 2 - r1**2 + 2 * product) / (1 - product) ** 2
    squared = ((1 - product) ** 2 / (4 * product)) * ((highest - target) / (1 + target))
    return squared.clamp(0.0, 1.0).sqrt()


def phase_of_weight(target: Tensor, *, r1: float, r2: float, loss: float) -> Tensor:
    """Return the detuning φ in [0, π] at which :func:`weight` equals `target`: its closed-form inverse.

    Raises:
        UserError: a target is NaN or outside :func:`weight_range`.
    """
    low, high = weight_range(r1=r1, r2=r2, loss=loss)
    slack = 1e-9
    require_between("weight", target, low - slack, high + slack, closed=True)
    return 2 * torch.asin(half_phase_sine(target, r1=r1, r2=r2, loss=loss))


def weight_range(*, r1: float, r2: float, loss: float) -> tuple[float, float]:
    """Return the lowest weight (φ = π) and the highest (φ = 0)."""
    ends = weight(torch.tensor([math.pi, 0.0], dtype=torch.float64), r1=r1, r2=r2, loss=loss)
    return float(ends[0]), float(ends[1])


def free_spectral_range(*, wavelength_m: FloatOrTensor, radius_m: float, group_index: float) -> FloatOrTensor:
    """Return FSR = λ²/(n_g·2πR), in metres of wavelength."""
    _check_lengths(wavelength_m=wavelength_m, radius_m=radius_m, group_index=group_index)
    return wavelength_m**2 / (group_index * 2 * math.pi * radius_m)


def finesse(*, r1: FloatOrTensor, r2: FloatOrTensor, loss: FloatOrTensor) -> FloatOrTensor:
    """Return F = π√P/(1 − P), the FSR over the full width at half maximum."""
    _check_ring(r1, r2, loss)
    product = r1 * r2 * loss
    root: FloatOrTensor = product**0.5
    return math.pi * root / (1 - product)


def _check_ring(r1: float | Tensor, r2: float | Tensor, loss: float | Tensor) -> None:
    require_between("self-coupling r1", r1, 0.0, 1.0)
    require_between("self-coupling r2", r2, 0.0, 1.0)
    require_positive("round-trip amplitude (loss)", loss)
    require_between("round-trip amplitude (loss)", loss, 0.0, 1.0, closed=True)


def _check_lengths(**values: float | Tensor) -> None:
    for name, value in values.items():
        require_positive(name, value)


def product_of_finesse(value: float) -> float:
    """Return P = r1·r2·a of a ring with finesse `value`: the inverse of F = π√P/(1 − P).

    Raises:
        UserError: the finesse is not a positive number.
    """
    require_positive("finesse", value)
    return ((math.sqrt(math.pi**2 + 4 * value**2) - math.pi) / (2 * value)) ** 2


@dataclass(frozen=True)
class Microring:
    """One add-drop ring, checked.

    Attributes:
        r1, r2: amplitude self-couplings of the input and the drop bus, in (0, 1).
        loss: amplitude kept per round trip, in (0, 1].
        radius_m: ring radius.
        group_index: n_g at the resonance.
        effective_index: n_eff at `wavelength_m`; sets where resonances lie, not their shape.
        wavelength_m: the resonance's neighbourhood.

    Example:
        >>> ring = Microring(r1=0.98, r2=0.98, loss=0.995, radius_m=5e-6, group_index=4.2)
        >>> round(ring.finesse), round(1e9 * ring.linewidth_m, 3)
        (69, 0.263)
    """

    r1: float
    r2: float
    loss: float
    radius_m: float
    group_index: float
    effective_index: float = 2.4
    wavelength_m: float = 1.55e-6

    def __post_init__(self) -> None:
        _check_ring(self.r1, self.r2, self.loss)
        for name in ("radius_m", "group_index", "effective_index", "wavelength_m"):
            require_positive(name, getattr(self, name))

    @classmethod
    def with_finesse(
        cls, value: float, *, loss: float, radius_m: float, group_index: float, wavelength_m: float = 1.55e-6
    ) -> Microring:
        """Return the ring with equal couplings whose finesse is `value`.

        Raises:
            UserError: the finesse is more than the round-trip loss allows.
        """
        _check_ring(0.5, 0.5, loss)
        coupling = (product_of_finesse(value) / loss) ** 0.5
        if coupling >= 1:
            limit = math.pi * math.sqrt(loss) / (1 - loss) if loss < 1 else math.inf
            raise UserError(
                f"finesse is {value:g}, but a round-trip amplitude of {loss:g} allows less than {limit:.4g}"
            )
        return cls(
            r1=coupling,
            r2=coupling,
            loss=loss,
            radius_m=radius_m,
            group_index=group_index,
            wavelength_m=wavelength_m,
        )

    @property
    def product(self) -> float:
        """P = r1·r2·a."""
        return self.r1 * self.r2 * self.loss

    @property
    def free_spectral_range_m(self) -> float:
        """Distance of neighbouring resonances, metres of wavelength."""
        return free_spectral_range(wavelength_m=self.wavelength_m, radius_m=self.radius_m, group_index=self.group_index)

    @property
    def finesse(self) -> float:
        """F = FSR/FWHM."""
        return finesse(r1=self.r1, r2=self.r2, loss=self.loss)

    @property
    def linewidth_m(self) -> float:
        """Full width at half maximum, FWHM = (1 − P)λ²/(π·n_g·L·√P)."""
        return self.free_spectral_range_m / self.finesse

    @property
    def weight_range(self) -> tuple[float, float]:
        """Lowest and highest weight."""
        return weight_range(r1=self.r1, r2=self.r2, loss=self.loss)

    def phase(self, wavelength_m: Tensor) -> Tensor:
        """Round-trip phase at `wavelength_m`."""
        require_finite("wavelength_m", wavelength_m)
        return round_trip_phase(
            wavelength_m=wavelength_m,
            radius_m=self.radius_m,
            effective_index=self.effective_index,
            group_index=self.group_index,
            centre_m=self.wavelength_m,
        )

    def spectrum(self, wavelength_m: Tensor) -> tuple[Tensor, Tensor]:
        """Return the through and the drop transmission at `wavelength_m`; one cosine serves both."""
        denominator = torch.cos(self.phase(wavelength_m)).mul_(-2 * self.product).add_(1 + self.product**2)
        # T_t = (D + (r2·a)² + r1² − 1 − P²)/D: the numerator differs from D by a constant only.
        excess = (self.r2 * self.loss) ** 2 + self.r1**2 - 1 - self.product**2
        inverse = denominator.reciprocal_()
        return 1 + excess * inverse, ((1 - self.r1**2) * (1 - self.r2**2) * self.loss) * inverse

    def through(self, phase: Tensor) -> Tensor:
        """T_t at round-trip phase `phase`."""
        return through(phase, r1=self.r1, r2=self.r2, loss=self.loss)

    def drop(self, phase: Tensor) -> Tensor:
        """T_d at round-trip phase `phase`."""
        return drop(phase, r1=self.r1, r2=self.r2, loss=self.loss)

    def weight(self, phase: Tensor) -> Tensor:
        """T_d − T_t at round-trip phase `phase`."""
        return weight(phase, r1=self.r1, r2=self.r2, loss=self.loss)

    def phase_of_weight(self, target: Tensor) -> Tensor:
        """Round-trip phase in [0, π] at which the weight is `target`."""
        return phase_of_weight(target, r1=self.r1, r2=self.r2, loss=self.loss)

"""A bank of N microrings on one bus that weights N wavelength channels, and its calibration.

::

    λ1..λN ──(ring 1)──(ring 2)── … ──(ring N)── through ┐
                │         │              │               ├─ balanced pair → Σ_i w_i·x_i
    drop  ──────┴─────────┴── … ─────────┴───────────────┘

To first order and incoherently (no light returns to the bus):

* drop_i = Σ_j T_d,j(λ_i)·Π_{k<j} T_t,k(λ_i), through_i = Π_j T_t,j(λ_i), w_i = drop_i − through_i.

Ring j resonates on channel j when its tuning phase is 0 and is tuned to the red; channels lie `spacing` linewidths
apart. Broadcast-and-weight: Tait et al., "Microring weight banks", IEEE J. Sel. Top. Quantum Electron. 22, 5900214
(2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lumoe.errors import UserError
from lumoe.photonics.physics.limits import require_between, require_count, require_finite, require_positive
from lumoe.photonics.physics.link import channel_capacity
from lumoe.photonics.physics.microring import Microring, half_phase_sine

# Rings × channels that one pass holds: a few arrays of this many floats stay in the caches.
_CHUNK_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class WeightBank:
    """N equal rings, each on its own wavelength.

    Attributes:
        ring: the ring's design.
        channels: N, how many wavelengths share the bus.
        spacing: distance of neighbouring channels, in linewidths of the ring.
        reach: the largest |w| used, as a fraction of the ring's highest weight. Close to 1 the neighbours' loss cannot
            be made good any more.

    Raises:
        UserError: the free spectral range does not hold that many channels, or the ring has no positive weight.
    """

    ring: Microring
    channels: int
    spacing: float
    reach: float = 0.75

    def __post_init__(self) -> None:
        require_count("channels", self.channels, 1)
        require_positive("spacing", self.spacing)
        require_between("reach", self.reach, 0.0, 1.0)
        self.full_scale  # noqa: B018 - a ring that no weights can be mapped to must fail here
        most = int(channel_capacity(self.ring.finesse, self.spacing))
        if self.channels > most:
            raise UserError(
                f"channels is {self.channels}, but a finesse of {self.ring.finesse:.4g} holds at most {most} channels "
                f"{self.spacing:g} linewidths apart"
            )

    @property
    def full_scale(self) -> float:
        """The largest |w| that weights are mapped to."""
        return full_scale(self.ring, self.reach)

    @property
    def channel_phase(self) -> float:
        """Round-trip phase between neighbouring channels, radians."""
        return 2 * math.pi * self.spacing / self.ring.finesse

    def isolated_phases(self, weights: Tensor) -> Tensor:
        """Return the tuning phase that sets each weight as if its ring were alone, same shape as `weights`."""
        self._check(weights)
        return 2 * torch.asin(_half_sine(weights, self.ring))

    def weights(self, phases: Tensor) -> Tensor:
        """Return the weights [..., n ≤ N] of banks whose rings have the tuning phases [..., n]; differentiable."""
        require_count("rings (the last dimension of the phases)", phases.shape[-1], 1, self.channels)
        require_finite("phase", phases)
        half = phases.movedim(-1, 0) / 2
        sine, cosine = torch.sin(half), torch.cos(half)
        seen = torch.full_like(half, -1.0)
        gain, excess = _numerators(self.ring)
        for _, inverse in _inverse_denominators(sine, cosine, self):
            seen = seen + inverse * (gain + excess * seen)
        return seen.movedim(0, -1)

    def calibrate(self, weights: Tensor, *, tolerance: float | None = None, iterations: int = 60) -> Tensor:
        """Return the tuning phases [..., n] at which the bank, crosstalk included, has the weights [..., n].

        Newton's method with the exact diagonal of the Jacobian, on the weight that each ring would have alone: in this
        variable the diagonal stays near 1 over the whole range, also where dw/dφ vanishes. Banks are solved
        independently, many at once, until the largest error is below `tolerance`: by default 1e-9, or 4e-6 in float32.
        A bank that is not solved by then keeps the phases of the last step, without a word: below about 3 linewidths of
        spacing some have no solution, and some a solution beyond the solver's floor. `weights` shows what is left.
        """
        start = weights.detach()
        self._check(start)
        if tolerance is None:
            tolerance = 1e-9 if start.dtype == torch.float64 else 4e-6
        rings = start.shape[-1]
        flat = start.reshape(-1, rings).T.contiguous()
        banks = max(1, _CHUNK_ELEMENTS // rings)
        solved = [_newton(part, self, tolerance, iterations) for part in torch.split(flat, banks, dim=1)]
        return torch.cat(solved, dim=1).T.reshape(start.shape)

    def _check(self, weights: Tensor) -> None:
        require_count("rings (the last dimension of the weights)", weights.shape[-1], 1, self.channels)
        require_between("weight", weights, -self.full_scale - 1e-6, self.full_scale + 1e-6, closed=True)


def full_scale(ring: Microring, reach: float) -> float:
    """Return the largest |w| that weights are mapped to: `reach` of what the ring has on both sides of 0.

    Raises:
        UserError: the ring has no positive weight.
    """
    low, high = ring.weight_range
    if high <= 0:
        raise UserError(
            f"ring has a highest weight of {high:.3g}, so no positive one: it is undercoupled; lower r1 (the coupling "
            f"to the input bus), raise r2, or take a ring of less loss"
        )
    return reach * min(-low, high)


def lorentzian_crosstalk(spacing: float) -> tuple[float, float]:
    """Return the nearest neighbour's leak and the sum over all neighbours on both sides, uncalibrated.

    A Lorentzian of full width 1 leaks 1/(1 + (2kδ)²) at the k-th neighbour; Σ over both sides is
    (π/2δ)·coth(π/2δ) − 1.
    """
    require_positive("spacing", spacing)
    argument = math.pi / (2 * spacing)
    return 1 / (1 + (2 * spacing) ** 2), argument / math.tanh(argument) - 1


def attainable_bits(error: float) -> float:
    """Return −log2(2·error): the bits whose half step is `error`, relative to full scale."""
    require_positive("error", error)
    return -math.log2(2 * error)


def _half_sine(weights: Tensor, ring: Microring) -> Tensor:
    return half_phase_sine(weights, r1=ring.r1, r2=ring.r2, loss=ring.loss)


def _numerators(ring: Microring) -> tuple[float, float]:
    """K and E in T_d = K/D and T_t = 1 + E/D."""
    gain = (1 - ring.r1**2) * (1 - ring.r2**2) * ring.loss
    return gain, (ring.r2 * ring.loss) ** 2 + ring.r1**2 - 1 - ring.product**2


def _inverse_denominators(sine: Tensor, cosine: Tensor, bank: WeightBank) -> Iterator[tuple[int, Tensor]]:
    """Yield (j, 1/D of ring j at every channel, [n, ...]) from the last ring to the first.

    D = (1 − P)² + 4P·sin²(φ/2): unlike 1 − 2P·cosφ + P² it keeps its digits in float32.
    """
    rings, product = sine.shape[0], bank.ring.product
    half = torch.arange(-rings + 1, rings, dtype=torch.float64) * (bank.channel_phase / 2)
    shape = (-1, *([1] * (sine.dim() - 1)))
    near, far = (f(half).to(sine).reshape(shape) for f in (torch.cos, torch.sin))
    for j in range(rings - 1, -1, -1):
        beside = slice(rings - 1 - j, 2 * rings - 1 - j)
        detuned = sine[j] * near[beside] - cosine[j] * far[beside]
        yield j, 1 / ((1 - product) ** 2 + (4 * product) * detuned**2)


def _newton(target: Tensor, bank: WeightBank, tolerance: float, iterations: int) -> Tensor:
    gain, excess = _numerators(bank.ring)
    # What neighbours take from the through port goes to the drop port and can only raise a weight: alone, a ring needs
    # its weight or less. The lower limit only stops wild steps.
    floor = -(1 + bank.full_scale) / 2
    alone = target.clone()
    sine = _half_sine(alone, bank.ring)
    for _ in range(iterations):
        cosine = (1 - sine**2).sqrt()
        seen, kept, slope = torch.full_like(target, -1.0), torch.ones_like(target), torch.empty_like(target)
        # Seen from ring j onward the weight of a channel is W_j = T_d,j + T_t,j·W_{j+1} = W_{j+1} + (K + E·W_{j+1})/D,
        # from W = −1 at the through detector. Its slope against ring j's isolated weight is (K + E·W_{j+1})/(K − E),
        # times what the rings before j let through.
        for j, inverse in _inverse_denominators(sine, cosine, bank):
            rise = seen.mul(excess).add_(gain)
            slope[j] = rise[j] / (gain - excess)
            seen.addcmul_(inverse, rise)
            kept[j + 1 :].addcmul_(kept[j + 1 :] * inverse[j + 1 :], torch.tensor(excess).to(kept))
        error = seen.sub_(target)
        if float(error.abs().max()) < tolerance:
            break
        alone = alone.sub_(error / slope.mul_(kept)).clamp_(min=floor)
        sine = _half_sine(alone, bank.ring)
    return 2 * torch.asin(sine)

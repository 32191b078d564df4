"""A profile measured on one model, as a profile of another one on the same machine.

Of the numbers of a profile, the way to the slow tier (latency and bytes per second) and the size of the fast tier are
the machine's. Two are of the model that was timed: the time of an expert, which goes with its weights, and the time
outside the experts, which goes with the weights there that a token uses. Where the profile also has the time of a large
expert, what a weight costs is told apart from what a call, or a layer, costs whatever its size, and each goes with its
own number. Otherwise, and where the timed experts are large themselves, all of it goes with the weights.
"""

from __future__ import annotations

from lumoe.errors import UserError
from lumoe.moe.planning.cost import seconds_at
from lumoe.moe.planning.hardware import Hardware, Seconds
from lumoe.moe.planning.plan import FULL_BITS
from lumoe.moe.planning.shape import ModelShape


def is_of(hardware: Hardware, shape: ModelShape, stored: str = "") -> bool:
    """Whether a profile was measured on a model of this shape, with experts from the same codes.

    Profiles that do not say how much their model has outside its experts are told apart by their widths.
    """
    widths = (hardware.hidden, hardware.intermediate) == (shape.hidden_size, shape.intermediate_size)
    if hardware.outside is None:
        return widths
    return widths and hardware.outside == shape.outside_parameters_per_token and hardware.stored == stored


def scaled(hardware: Hardware, shape: ModelShape, stored: str = "") -> Hardware:
    """Return the profile that a machine would have for a model of `shape`, by that of another model.

    Args:
        stored: codes that the model's experts "at 16 bits" are computed from.

    Raises:
        UserError: the profile does not say what would have to be known, or was measured on other arithmetic.
    """
    if is_of(hardware, shape, stored):
        return hardware
    name = f"hardware profile '{hardware.name}'"
    again = "measure a profile of it with `lumoe moe calibrate`"
    timed, wanted = (hardware.hidden, hardware.intermediate), (shape.hidden_size, shape.intermediate_size)
    if not hardware.expert:
        raise UserError(
            f"{name} has one time for a whole model of widths {timed}, which says nothing of one with {wanted}: {again}"
        )
    if hardware.outside is None:
        raise UserError(
            f"{name} was measured on a model of widths {timed}, this one has {wanted}, and it does not say how much "
            f"that model has outside its experts: measure it again, or {again}"
        )
    if hardware.stored != stored:
        theirs, ours = (f"codes ({codes})" if codes else "16-bit weights" for codes in (hardware.stored, stored))
        raise UserError(f"{name} was measured on experts computed from {theirs}, this model's are {ours}: {again}")
    weights = 3 * hardware.hidden * hardware.intermediate
    of_expert = shape.expert_parameters / weights
    expert = {bits: _expert(hardware, bits, weights, shape.expert_parameters) for bits in hardware.expert}
    return hardware.model_copy(
        update={
            "dense": _outside(hardware, weights, shape),
            "expert": expert,
            "host": {bits: _times(seconds, of_expert) for bits, seconds in hardware.host.items()},
            "hidden": shape.hidden_size,
            "intermediate": shape.intermediate_size,
            "outside": shape.outside_parameters_per_token,
            "layers": shape.num_hidden_layers,
        }
    )


def _times(seconds: Seconds, factor: float) -> Seconds:
    return seconds.model_copy(update={"seconds": [value * factor for value in seconds.seconds]})


def _per_weight(hardware: Hardware, bits: int, weights: int, tokens: int) -> float | None:
    """Return the seconds that one more weight of an expert costs over `tokens` tokens; None where it is not known."""
    if bits not in hardware.large or hardware.large_weights is None or weights > hardware.large_weights / 2:
        return None
    small, large = (float(seconds_at(of[bits], tokens)) for of in (hardware.expert, hardware.large))
    slope = (large - small) / (hardware.large_weights - weights)
    return slope if slope > 0 and small >= slope * weights else large / hardware.large_weights


def _expert(hardware: Hardware, bits: int, weights: int, wanted: int) -> Seconds:
    timed = hardware.expert[bits]
    values = []
    for tokens, seconds in zip(timed.tokens, timed.seconds, strict=True):
        each = _per_weight(hardware, bits, weights, tokens)
        call = 0.0 if each is None else max(seconds - each * weights, 0.0)
        values.append(call + wanted * (seconds / weights if each is None else each))
    return timed.model_copy(update={"seconds": values})


def _outside(hardware: Hardware, weights: int, shape: ModelShape) -> Seconds:
    """Weights outside the experts cost what those of 16-bit experts do; the rest goes with the number of layers."""
    timed, before, after = hardware.dense, hardware.outside or 1, shape.outside_parameters_per_token
    values = []
    for tokens, seconds in zip(timed.tokens, timed.seconds, strict=True):
        each = _per_weight(hardware, FULL_BITS, weights, tokens)
        if each is None or hardware.layers is None or seconds < each * before:
            values.append(seconds * after / before)
        else:
            rest = (seconds - each * before) / hardware.layers
            values.append(rest * shape.num_hidden_layers + each * after)
    return timed.model_copy(update={"seconds": values})

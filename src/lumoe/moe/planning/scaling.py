"""A profile measured on one model, as a profile of another one on the same machine.

Of the numbers of a profile, the way to the slow tier (latency and bytes per second) and the size of the fast tier are
the machine's. Two are of the model that was timed: the time of an expert, which goes with its weights, and the time
outside the experts, which goes with the weights there that a token uses. Both are scaled in proportion: what a call
costs whatever its size is scaled along with the rest, so that a profile of a tiny model is slow on a large one.
"""

from __future__ import annotations

from lumoe.errors import UserError
from lumoe.moe.planning.hardware import Hardware, Seconds
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
    of_expert = shape.expert_parameters / (3 * hardware.hidden * hardware.intermediate)
    of_outside = shape.outside_parameters_per_token / hardware.outside
    return hardware.model_copy(
        update={
            "dense": _times(hardware.dense, of_outside),
            "expert": {bits: _times(seconds, of_expert) for bits, seconds in hardware.expert.items()},
            "host": {bits: _times(seconds, of_expert) for bits, seconds in hardware.host.items()},
            "hidden": shape.hidden_size,
            "intermediate": shape.intermediate_size,
            "outside": shape.outside_parameters_per_token,
        }
    )


def _times(seconds: Seconds, factor: float) -> Seconds:
    return seconds.model_copy(update={"seconds": [value * factor for value in seconds.seconds]})

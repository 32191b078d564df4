"""`name=value` choices of a user, sorted into an accelerator's design and its device parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from lumoe.errors import UserError, nearest
from lumoe.photonics.devices import DeviceSet

# Short names on the command line for parameters of the device files.
ALIASES = {"dacs": "input_dacs"}


def apply_choices(
    choices: Sequence[str], devices: DeviceSet, design_names: Collection[str]
) -> tuple[DeviceSet, dict[str, float]]:
    """Return the device set with the chosen parameters, and the chosen design values.

    Args:
        choices: ``name=value``, in the unit of the device file; `inf` is allowed for a design's count.
        design_names: the names that belong to the design.

    Raises:
        UserError: not of that form, an unknown name, or a value that is not a number or negative.
    """
    design: dict[str, float] = {}
    changes: dict[str, float] = {}
    for choice in choices:
        name, equals, text = choice.partition("=")
        name = ALIASES.get(name.strip(), name.strip())
        if not equals:
            raise UserError(f"'{choice}' is not of the form name=value")
        if name not in design_names and name not in devices.parameters:
            raise UserError(f"unknown name '{name}' in '{choice}'{nearest(name, [*design_names, *devices.parameters])}")
        value = _number(choice, text)
        (design if name in design_names else changes)[name] = value
    return devices.replace(changes), design


def _number(choice: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"'{choice}': '{text}' is not a number") from None
    if math.isnan(value):
        raise UserError(f"'{choice}': the value must be a number, not NaN")
    return value

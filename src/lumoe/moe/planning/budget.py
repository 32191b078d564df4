"""A byte budget as people write it: `24GB`, `22.5GiB`, `24G`, `30%` of the model, or a number of bytes."""

from __future__ import annotations

import re

from lumoe.errors import UserError

UNITS = {
    "": 1,
    "B": 1,
    # With and without the B: `free` and Kubernetes write 24G and 24Gi.
    **{prefix + b: 1000**power for power, prefix in enumerate("KMGT", start=1) for b in ("", "B")},
    **{f"{prefix}I{b}": 1024**power for power, prefix in enumerate("KMGT", start=1) for b in ("", "B")},
}
MOST_BYTES = 2**63
_PATTERN = re.compile(r"\s*((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z%]*)\s*")


def parse_budget(text: str, whole: int | None = None) -> int:
    """Return bytes.

    Args:
        text: a number and an optional unit; GB is 10⁹ bytes and GiB 2³⁰; case does not matter.
        whole: bytes that `%` refers to; without it `%` is refused.

    Raises:
        UserError: it is not a positive amount of memory.

    >>> parse_budget("27.68GB"), parse_budget("1GiB"), parse_budget("50%", whole=10)
    (27680000000, 1073741824, 5)
    """
    match = _PATTERN.fullmatch(text)
    unit = match[2].upper() if match else ""
    if match is None or (unit not in UNITS and (unit != "%" or whole is None)):
        raise UserError(f"budget '{text}' is not an amount of memory; write it like 24GB, 22.5GiB or 30%")
    scale = whole / 100 if unit == "%" and whole is not None else UNITS[unit]
    amount = float(match[1]) * scale
    if not 1 <= amount < MOST_BYTES:
        raise UserError(f"budget '{text}' must be above 0 bytes and below 2^63")
    return round(amount)

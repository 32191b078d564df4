"""The budget last set over HTTP, in a file: a server that was killed starts again with it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from lumoe.errors import UserError
from lumoe.files import read_sealed_json, write_sealed_json
from lumoe.moe.planning.plan import Preference

GROUP = "cgroup"


def write_last(path: Path, budget: int | str, preference: Preference) -> None:
    """Remember a budget in bytes, or `cgroup`, and the default preference, whole or not at all."""
    write_sealed_json(path, {"budget_bytes": budget, "preference": preference})


def read_last(path: Path) -> tuple[int | str, Preference] | None:
    """Return the budget in bytes, or `cgroup`, and the preference that were remembered, None where nothing was yet.

    Raises:
        UserError: the file is damaged or something else.
    """
    if not path.exists():
        return None
    found = read_sealed_json(path)
    budget = found.get("budget_bytes")
    preference: Preference | None = next((p for p in get_args(Preference) if p == found.get("preference")), None)
    if (type(budget) is not int and budget != GROUP) or preference is None:
        raise UserError(f"{path}: not the state of a server; delete it to start with --budget")
    return budget, preference

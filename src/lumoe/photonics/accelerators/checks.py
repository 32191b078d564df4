"""Checks of an architect's numbers, over arrays of designs: one sentence that names the number and its value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lumoe.errors import UserError
from lumoe.photonics.devices import Number, Values


@dataclass(frozen=True)
class Needs:
    """The device parameters that a model reads.

    Attributes:
        model: what needs them, as a message names it.
        counts: whole numbers of at least 1.
        rates: those that must be positive.
        others: the rest.
    """

    model: str
    counts: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Every parameter."""
        return self.counts + self.rates + self.others

    def check(self, values: Values) -> None:
        """Raise unless every parameter is there, every count whole and every rate positive.

        Raises:
            UserError: the message names the parameter.
        """
        require_known(values, self.names, self.model)
        require_counts(values, self.counts)
        require_rates(values, self.rates)


def require_known(values: Mapping[str, object], names: Iterable[str], accelerator: str) -> None:
    """Raise unless the device values hold every name that an accelerator needs.

    Raises:
        UserError: the message names the first that is missing.
    """
    for name in names:
        if name not in values:
            raise UserError(f"the device set lacks '{name}', which {accelerator} needs")


def require_rates(values: Mapping[str, Number], names: Iterable[str]) -> None:
    """Raise unless every one of these values is positive."""
    for name in names:
        if not np.all(np.asarray(values[name]) > 0):
            raise UserError(f"{name} is {np.min(values[name]):g}, but must be positive")


def require_counts(values: Mapping[str, Number], names: Iterable[str], *, endless: bool = False) -> None:
    """Raise unless every one of these values is a whole number of at least 1; infinite is one where `endless`."""
    for name in names:
        found = np.asarray(values[name], dtype=float)
        whole = (found == np.round(found)) & (np.isfinite(found) | endless)
        wrong = found[~((found >= 1) & whole)]
        if wrong.size:
            raise UserError(f"{name} is {wrong.min():g}, but must be a whole number of at least 1")


def require_switches(values: Mapping[str, Number], names: Iterable[str]) -> None:
    """Raise unless every one of these values is 0 or 1."""
    for name in names:
        found = np.asarray(values[name], dtype=float)
        wrong = found[~np.isin(found, (0.0, 1.0))]
        if wrong.size:
            raise UserError(f"{name} is {wrong.flat[0]:g}, but must be 0 (off) or 1 (on)")

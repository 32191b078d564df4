"""Device sets: every number of an accelerator's parts with its unit, source, confidence and, if assumed, its range.

A set is a YAML file (`data/devices/NAME.yaml`, or a path of the user's own) of `name: {value, unit, source,
confidence, low, high}`; `base:` names a set whose parameters it inherits. Code reads SI values only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumoe.errors import UserError, about, nearest
from lumoe.files import read_yaml
from lumoe.resources import data_path

# Factor to SI of every unit that a device file may use. Logarithmic units (dB, dBm, dB/Hz) and counts stay as they are.
UNITS = {
    "1": 1.0, "bit": 1.0, "dB": 1.0, "dBm": 1.0, "dB/cm": 1.0, "dB/Hz": 1.0, "rad": 1.0,
    "m": 1.0, "cm": 1e-2, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "pm": 1e-12,
    "mm2": 1e-6, "um2": 1e-12,
    "s": 1.0, "us": 1e-6, "ns": 1e-9, "ps": 1e-12,
    "Hz": 1.0, "MHz": 1e6, "GHz": 1e9, "THz": 1e12, "MS/s": 1e6, "GS/s": 1e9, "Gb/s": 1e9,
    "B/s": 1.0, "GB/s": 1e9, "kb": 1e3, "kB": 8e3,
    "W": 1.0, "mW": 1e-3, "uW": 1e-6, "J": 1.0, "nJ": 1e-9, "pJ": 1e-12, "fJ": 1e-15,
    "pJ/bit": 1e-12, "fJ/bit": 1e-15, "fJ/step": 1e-15, "pJ/64b": 1e-12 / 64, "nJ/64b": 1e-9 / 64,
    "A/W": 1.0, "A": 1.0, "mA": 1e-3, "nA": 1e-9, "ohm": 1.0, "K": 1.0,
    "pm/K": 1e-12, "mW/FSR": 1e-3, "uW/nm": 1e3,
}  # fmt: skip

# One design's number, or those of many designs, [P].
Number = float | npt.NDArray[np.float64]
# SI numbers by the names of the device files, as `DeviceSet.values` gives them.
Values = Mapping[str, Number]

Confidence = Literal["read", "derived", "recalled", "assumed"]


class Numbers(Protocol):
    """Whatever gives SI numbers by the names of the device files: `Values`, or a checked record of them."""

    def __getitem__(self, name: str, /) -> Any:
        """The number of that name."""


class Parameter(BaseModel):
    """One number with its provenance. `low` and `high` (same unit) bound it where it is not simply read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(allow_inf_nan=False)
    unit: str
    source: str = Field(min_length=3)
    confidence: Confidence
    low: float | None = Field(default=None, allow_inf_nan=False)
    high: float | None = Field(default=None, allow_inf_nan=False)

    @model_validator(mode="after")
    def _consistent(self) -> Parameter:
        if self.unit not in UNITS:
            raise ValueError(f"unknown unit '{self.unit}'{nearest(self.unit, UNITS)}")
        if (self.low is None) != (self.high is None):
            raise ValueError("low and high go together")
        if self.low is not None and self.high is not None and not self.low <= self.value <= self.high:
            raise ValueError(f"{self.value:g} is outside its own range [{self.low:g}, {self.high:g}]")
        if self.confidence == "assumed" and self.low is None:
            raise ValueError("an assumed number needs its range: low and high")
        return self

    @property
    def si(self) -> float:
        """The value in SI units."""
        return self.value * UNITS[self.unit]

    @property
    def range_si(self) -> tuple[float, float] | None:
        """The (low, high) range in SI units, None for a number without one."""
        if self.low is None or self.high is None:
            return None
        return self.low * UNITS[self.unit], self.high * UNITS[self.unit]


class DeviceSet(BaseModel):
    """A named set of parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    parameters: dict[str, Parameter]

    def __getitem__(self, name: str) -> Parameter:
        """Return a parameter.

        Raises:
            UserError: the set has none of that name; the message gives the nearest.
        """
        if name not in self.parameters:
            raise UserError(f"device set '{self.name}': no parameter '{name}'{nearest(name, self.parameters)}")
        return self.parameters[name]

    def si(self, name: str) -> float:
        """Return the value of one parameter in SI units."""
        return self[name].si

    def values(self) -> dict[str, float]:
        """Return every parameter's value in SI units, by name."""
        return {name: parameter.si for name, parameter in self.parameters.items()}

    def replace(self, changes: Mapping[str, float]) -> DeviceSet:
        """Return a copy with other values, each given in the parameter's own unit; ranges grow to hold them.

        Raises:
            UserError: an unknown name, or a value that is not finite or not positive where the original is.
        """
        changed = dict(self.parameters)
        for name, value in changes.items():
            old = self[name]
            if not math.isfinite(value) or (old.value > 0 and value < 0):
                unit = "" if old.unit == "1" else f" {old.unit}"
                raise UserError(f"{name} is {value:g}{unit}, but must be finite and not negative")
            wider = {} if old.low is None or old.high is None else {
                "low": min(old.low, value), "high": max(old.high, value)
            }  # fmt: skip
            note = {"value": value, "source": "set by the user", **wider}
            changed[name] = old.model_copy(update=note)
        return self.model_copy(update={"parameters": changed})


def device_set_names() -> list[str]:
    """Return the names of the shipped device sets."""
    return sorted(path.stem for path in data_path("devices").glob("*.yaml"))


def load_devices(name: str | Path) -> DeviceSet:
    """Load a shipped device set by name, or one from a ``.yaml`` file, with what its `base` gives.

    Raises:
        UserError: no such set, or an ill-formed file; the message names the file and the parameter.
    """
    path = _path(str(name))
    return DeviceSet(name=path.stem, description=_document(path)["description"], parameters=_parameters(path, ()))


def _path(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    if name not in device_set_names():
        raise UserError(f"unknown device set '{name}'{nearest(name, device_set_names())}")
    return data_path("devices", f"{name}.yaml")


def _document(path: Path) -> dict[str, Any]:
    document = read_yaml(path)
    if not isinstance(document, dict) or not isinstance(document.get("parameters"), dict):
        raise UserError(f"{path}: not a device set; it needs 'description' and 'parameters'")
    if unknown := sorted(set(document) - {"description", "base", "parameters"}):
        raise UserError(
            f"{path}: unknown key '{unknown[0]}'{nearest(unknown[0], ['description', 'base', 'parameters'])}"
        )
    return {"description": "", **document}


def _parameters(path: Path, seen: tuple[Path, ...]) -> dict[str, Parameter]:
    if path in seen:
        raise UserError(f"{path}: its chain of bases leads back to itself")
    document = _document(path)
    base = document.get("base")
    with about(path):
        found = _parameters(_path(str(base)), (*seen, path)) if base else {}
    for name, fields in document["parameters"].items():
        try:
            found[name] = Parameter.model_validate(fields)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join([name, *(str(part) for part in first["loc"])])
            raise UserError(f"{path}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    return found

"""On which assumptions a photonic claim hangs: Sobol indices, one-at-a-time swings, and where the claim holds.

Every device parameter that has a range and that the model reads is varied, with the design choices of a study. A range
that spans a decade or more is sampled evenly in the logarithm. Indices are of the logarithm of the quantity, since
claims speak of orders of magnitude (Saltelli et al., Computer Physics Communications 181, 259 (2010)).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from SALib.analyze import sobol as analyze
from SALib.sample import sobol as sample

from lumoe.errors import UserError
from lumoe.files import read_yaml
from lumoe.photonics.devices import UNITS, DeviceSet, load_devices
from lumoe.photonics.network.layers import Network
from lumoe.photonics.network.shapes import Array
from lumoe.photonics.studies.metrics import METRICS, Metrics

COLUMNS = (
    "claim", "quantity", "metric", "threshold", "parameter", "unit", "value", "low", "high", "confidence", "nominal",
    "at_low", "at_high", "first_order", "first_order_ci", "total_order", "total_order_ci", "fraction_holds", "samples",
)  # fmt: skip
SUMMARY_COLUMNS = (
    "claim", "quantity", "metric", "threshold", "nominal", "p05", "p50", "p95", "fraction_holds", "decisive", "samples",
)  # fmt: skip
DECADE = 10.0


class Choice(BaseModel):
    """A design choice that a study varies: between `low` and `high`, or over `levels`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float
    low: float | None = None
    high: float | None = None
    levels: list[float] = []
    why: str


class Study(BaseModel):
    """One quantity of one claim, and what makes the claim hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    claim: str
    quantity: str
    accelerator: Literal["pcnna", "winograd"]
    device_set: str
    metric: str
    at_least: float = Field(gt=0)
    source: str
    design: dict[str, Choice] = {}


@dataclass(frozen=True)
class Factor:
    """One varied input in SI units; `levels` replace the range where only those values exist."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    confidence: str
    is_design: bool
    levels: tuple[float, ...] = ()
    whole: bool = False

    def scale(self, uniform: Array) -> Array:
        """Return values of the range for positions in [0, 1], any shape."""
        if self.levels:
            index = np.minimum((uniform * len(self.levels)).astype(int), len(self.levels) - 1)
            return np.asarray(np.asarray(self.levels)[index])
        if self.low > 0 and self.high / self.low >= DECADE:
            found = self.low * (self.high / self.low) ** uniform
        else:
            found = self.low + (self.high - self.low) * uniform
        return np.round(found) if self.whole else np.asarray(found)


class _Reads(dict[str, float]):
    """Device values that remember which of them were read."""

    def __init__(self, values: Mapping[str, float]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> float:
        self.read.add(name)
        return super().__getitem__(name)


def read_studies(path: str | Path) -> list[Study]:
    """Read the studies of a file.

    Raises:
        UserError: the file is absent or a study is ill-formed.
    """
    document = read_yaml(path)
    try:
        return [Study.model_validate(fields) for fields in document["studies"]]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    except (TypeError, KeyError):
        raise UserError(f"{path}: it has no list 'studies'") from None


def factors(study: Study, devices: DeviceSet, evaluate: Metrics) -> list[Factor]:
    """Return what the study's metric depends on: device parameters with a range that the model reads, and choices."""
    reads = _Reads(devices.values())
    one = {name: np.array([choice.value]) for name, choice in study.design.items()}
    evaluate(reads, one)  # type: ignore[arg-type]
    found = [
        Factor(name, parameter.unit, parameter.si, *bounds, parameter.confidence, False, whole=parameter.unit == "1")
        for name, parameter in devices.parameters.items()
        if name in reads.read and (bounds := parameter.range_si)
    ]
    for name, choice in study.design.items():
        levels = tuple(choice.levels)
        ends = [choice.value if end is None else end for end in (choice.low, choice.high)]
        low, high = (min(levels), max(levels)) if levels else ends
        found.append(Factor(name, "1", choice.value, low, high, "assumed", True, levels, whole=True))
    return found


def evaluate_points(study: Study, devices: DeviceSet, evaluate: Metrics, varied: list[Factor], points: Array) -> Array:
    """Return the metric, [P], at `points` [P, D]: one column per factor, in SI units."""
    columns = {factor.name: points[:, index] for index, factor in enumerate(varied)}
    values = {name: np.asarray(value) for name, value in devices.values().items()}
    values |= {factor.name: columns[factor.name] for factor in varied if not factor.is_design}
    choices = {factor.name: columns[factor.name] for factor in varied if factor.is_design}
    metrics = evaluate(values, choices)
    if study.metric not in metrics:
        raise UserError(f"claim {study.claim}: no metric '{study.metric}'; known: {', '.join(metrics)}")
    return np.broadcast_to(metrics[study.metric], (len(points),))


def analyse(study: Study, network: Network, *, samples: int, seed: int) -> pd.DataFrame:
    """Return one row per factor of a study, with the fraction of the space in which its claim holds.

    Args:
        samples: base samples of the Sobol sequence, a power of two; the model runs samples · (factors + 2) times.
    """
    devices = load_devices(study.device_set)
    evaluate = METRICS[study.accelerator](network)
    varied = factors(study, devices, evaluate)
    problem = {"num_vars": len(varied), "names": [f.name for f in varied], "bounds": [[0.0, 1.0]] * len(varied)}
    uniform = sample.sample(problem, samples, calc_second_order=False, seed=seed)
    points = np.column_stack([factor.scale(uniform[:, index]) for index, factor in enumerate(varied)])
    results = evaluate_points(study, devices, evaluate, varied, points)
    # Of every D + 2 rows the first and the last are independent samples of the whole space, the others perturbations.
    block = len(varied) + 2
    independent = np.concatenate([results[::block], results[block - 1 :: block]])
    # SALib takes seed 0 for no seed.
    indices = analyze.analyze(problem, np.log10(results), calc_second_order=False, seed=seed + 1)
    nominal = np.array([factor.value for factor in varied])
    swings = np.repeat(nominal[None, :], 2 * len(varied) + 1, axis=0)
    for index, factor in enumerate(varied):
        swings[2 * index + 1, index], swings[2 * index + 2, index] = factor.low, factor.high
    swung = evaluate_points(study, devices, evaluate, varied, swings)
    table = pd.DataFrame(
        {
            "claim": study.claim,
            "quantity": study.quantity,
            "metric": study.metric,
            "threshold": study.at_least,
            "parameter": [factor.name for factor in varied],
            "unit": [factor.unit for factor in varied],
            "value": [factor.value / UNITS[factor.unit] for factor in varied],
            "low": [factor.low / UNITS[factor.unit] for factor in varied],
            "high": [factor.high / UNITS[factor.unit] for factor in varied],
            "confidence": [factor.confidence for factor in varied],
            "nominal": swung[0],
            "at_low": swung[1::2],
            "at_high": swung[2::2],
            "first_order": indices["S1"],
            "first_order_ci": indices["S1_conf"],
            "total_order": indices["ST"],
            "total_order_ci": indices["ST_conf"],
            "fraction_holds": float((independent >= study.at_least).mean()),
            "samples": len(independent),
        }
    )
    for name, level in {"p05": 5, "p50": 50, "p95": 95}.items():
        table[name] = np.percentile(independent, level)
    return table.sort_values("total_order", ascending=False, kind="stable", ignore_index=True)


def summaries(table: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield one record per quantity: its range over the space, the fraction that holds, the decisive assumptions."""
    for _, rows in table.groupby(["claim", "metric"], sort=False):
        first = rows.iloc[0]
        decisive = [f"{row.parameter} ({row.total_order:.2f})" for row in rows.head(3).itertuples()]
        yield {name: first[name] for name in SUMMARY_COLUMNS if name != "decisive"} | {"decisive": "; ".join(decisive)}

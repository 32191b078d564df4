"""What the papers claim, held against what the pipeline regenerated.

`data/claims.yaml` lists each claim with its quantities; a quantity says where its regenerated value stands (table,
rows, column) and how it is judged. Nothing here knows a number: values come from tables, the papers' from the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumoe.errors import UserError
from lumoe.files import read_csv, read_yaml

COLUMNS = (
    "claim", "paper", "quantity", "unit", "paper_value", "value", "low", "high", "verdict", "basis", "assumption",
    "target",
)  # fmt: skip
REDUCTIONS: dict[str, Callable[[npt.NDArray[Any]], Any]] = {
    "only": np.max,
    "max": np.max,
    "min": np.min,
    "sum": np.sum,
    "mean": np.mean,
}
Verdict = Literal["reproduced", "reproduced-under-assumptions", "partly", "not-reproduced", "not-run"]
Basis = Literal["measured", "simulated", "modelled", "fitted"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Cell = str | int | float | bool


class Strict(BaseModel):
    """A record of the claims file; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Value(Strict):
    """One number out of a regenerated table: the `reduce` of `column` over the rows that match `where`."""

    table: str = Field(description="path below the results folder; {names} are filled in from the settings")
    column: str
    where: dict[str, Cell] = {}
    reduce: Literal["only", "max", "min", "sum", "mean", "count"] = "only"
    per: str | None = Field(default=None, description="a second column to divide by, row by row, before reducing")
    minus_one: bool = Field(default=False, description="report the increase over one instead of the ratio")


class Judgement(Strict):
    """When a value bears the claim out."""

    rule: Literal["at-least", "at-most", "within"]
    threshold: Number
    tolerance: float = Field(default=0.0, ge=0, description="relative, for `within`")

    def holds(self, value: float) -> bool:
        """Whether `value` satisfies the rule; a missing value never does."""
        if np.isnan(value):
            return False
        if self.rule == "at-least":
            return value >= self.threshold
        if self.rule == "at-most":
            return value <= self.threshold
        return abs(value - self.threshold) <= self.tolerance * abs(self.threshold)


class Quantity(Strict):
    """One number (or judged statement) of a claim and where its regenerated counterpart stands."""

    quantity: str
    unit: str
    paper_value: Number | None = None
    paper_from: Number | None = Field(default=None, description="with paper_to: the paper's value is their increase")
    paper_to: Number | None = None
    value: Value | None = None
    low: Value | None = None
    high: Value | None = None
    basis: Basis | None = None
    judgement: Judgement | None = None
    needs: str | None = Field(default=None, description="what a run would need; makes the verdict not-run")
    optional: bool = Field(
        default=False, description="judged where the table has matching rows, else not-run for what it `needs`"
    )
    stand_in: bool = Field(default=False, description="shown beside the claim under its own name, never judged")
    assumption: str = ""
    target: str

    @model_validator(mode="after")
    def _consistent(self) -> Quantity:
        if (self.paper_from is None) != (self.paper_to is None):
            raise ValueError("paper_from and paper_to go together")
        if self.value is None and self.needs is None:
            raise ValueError("a quantity without a value must say what it needs")
        if self.value is not None and self.basis is None:
            raise ValueError("a value must say its basis")
        if self.optional and (self.value is None or self.needs is None):
            raise ValueError("an optional value must say what it needs where it is absent")
        judged = self.needs is None or self.optional
        if self.value is not None and judged and not self.stand_in and self.judgement is None:
            raise ValueError("a value needs a judgement, or must be a stand-in")
        return self

    def paper_number(self) -> float:
        """The paper's number, NaN for a qualitative statement."""
        if self.paper_from is not None and self.paper_to is not None:
            return self.paper_to / self.paper_from - 1
        return float("nan") if self.paper_value is None else self.paper_value


class Claim(Strict):
    """One claim of one abstract; the first quantity is the claim itself, the others stand beside it."""

    claim: str = Field(pattern=r"^[a-z0-9-]+$")
    paper: str
    statement: str
    quantities: list[Quantity] = Field(min_length=1)


class Claims(Strict):
    """The claims file."""

    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> Claims:
        names = [claim.claim for claim in self.claims]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"the claim '{min(twice)}' stands twice")
        return self


def read_claims(path: str | Path) -> Claims:
    """Read a claims file.

    Raises:
        UserError: the file is absent, not YAML, or a record is ill-formed; the message names the file and the record.
    """
    try:
        return Claims.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: at '{where}': {first['msg'].removeprefix('Value error, ')}") from None


def look_up(value: Value, results: str | Path, names: Mapping[str, str]) -> float:
    """Return the number that `value` points at.

    Raises:
        UserError: the table or column is absent, no row (for `only`: not exactly one row) matches, or the number is
            missing or infinite.
    """
    path, table = _rows(value, results, names)
    rows = value.where or "everything"
    numbers = table[value.column].to_numpy(dtype=object if value.reduce == "count" else float)
    if value.reduce == "count":
        return float(len(numbers))
    if value.per:
        numbers = numbers / table[value.per].to_numpy(dtype=float)
    if value.reduce in ("max", "min"):
        # A row without the figure (a baseline that never published its power) cannot be an extreme.
        numbers = numbers[~np.isnan(numbers)]
    if len(numbers) == 0 or (value.reduce == "only" and len(numbers) != 1):
        raise UserError(f"{path}: {len(numbers)} rows match {rows}, expected one; rebuild the table")
    number = float(REDUCTIONS[value.reduce](numbers)) - value.minus_one
    if not np.isfinite(number):
        raise UserError(f"{path}: '{value.column}' where {rows} is {number}; rebuild the table")
    return number


def _rows(value: Value, results: str | Path, names: Mapping[str, str]) -> tuple[Path, pd.DataFrame]:
    path = Path(results) / value.table.format_map(names)
    wanted = [value.column, *value.where, *([value.per] if value.per else [])]
    table = read_csv(path, wanted)
    for column, cell in value.where.items():
        cell = cell.format_map(names) if isinstance(cell, str) else cell
        # Names are text and columns may be numbers: compare as written.
        table = table[table[column].astype(str) == str(cell)]
    return path, table


def verdict(quantity: Quantity, value: float, low: float, high: float) -> Verdict:
    """Judge a regenerated value and its range.

    The claim is reproduced (under assumptions, if any are stated) when value, low and high all bear it out, partly
    when some do, not reproduced when none does. What needs absent hardware or weights is not run, and so is a
    stand-in: it shows a number, it does not decide the claim.
    """
    if quantity.needs is not None or quantity.stand_in or quantity.judgement is None:
        return "not-run"
    held = [quantity.judgement.holds(number) for number in (value, low, high) if not np.isnan(number)]
    if held and all(held):
        return "reproduced-under-assumptions" if quantity.assumption else "reproduced"
    return "partly" if any(held) else "not-reproduced"


def judge(claims: Claims, results: str | Path, names: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per quantity of every claim with the columns of `results/claims.csv`."""
    nan = float("nan")
    rows = []
    for claim in claims.claims:
        for quantity in (_as_measured(quantity, results, names) for quantity in claim.quantities):
            value, low, high = (
                nan if source is None else look_up(source, results, names)
                for source in (quantity.value, quantity.low, quantity.high)
            )
            needs = f"needs {quantity.needs}" if quantity.needs else ""
            rows.append(
                {
                    "claim": claim.claim,
                    "paper": claim.paper,
                    "quantity": _label(quantity) + quantity.quantity.format_map(names),
                    "unit": quantity.unit,
                    "paper_value": quantity.paper_number(),
                    "value": value,
                    "low": min(low, high) if low == low and high == high else low,
                    "high": max(low, high) if low == low and high == high else high,
                    "verdict": verdict(quantity, value, low, high),
                    "basis": quantity.basis or "",
                    "assumption": "; ".join(part for part in (needs, quantity.assumption) if part),
                    "target": f"results/{quantity.target.format_map(names)}",
                }
            )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _as_measured(quantity: Quantity, results: str | Path, names: Mapping[str, str]) -> Quantity:
    """Return an optional quantity without its value, or without its needs, as its table has rows for it or not."""
    if not quantity.optional or quantity.value is None:
        return quantity
    if not _rows(quantity.value, results, names)[1].empty:
        return quantity.model_copy(update={"needs": None})
    return quantity.model_copy(update={"value": None, "low": None, "high": None, "basis": None, "assumption": ""})


def _label(quantity: Quantity) -> str:
    # A constant that was fitted to the claim is no stand-in for it either.
    return "stand-in: " if quantity.stand_in and quantity.basis != "fitted" else ""


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first row of each claim: the claim itself, in the order of the file."""
    return table.drop_duplicates("claim", keep="first").reset_index(drop=True)


def view_of(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of judged claims that people read, as text: numbers to four digits, units in the quantity."""
    shown = rows.astype(object).where(rows.notna(), "")
    return pd.DataFrame(
        [
            {
                "claim": row["claim"],
                "quantity": row["quantity"] + (f" [{row['unit']}]" if row["unit"] else ""),
                "paper": _number(row["paper_value"]),
                "here": _number(row["value"]),
                "range": f"{_number(row['low'])} … {_number(row['high'])}" if row["low"] != "" else "",
                "basis": row["basis"],
                "verdict": row["verdict"],
            }
            for row in shown.to_dict("records")
        ]
    )


def _number(value: float | str) -> str:
    return "" if value == "" else f"{float(value):.4g}"

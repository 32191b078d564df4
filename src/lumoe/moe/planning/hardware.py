"""A hardware profile: the few numbers from which the cost model predicts tokens per second, each with its source."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumoe.errors import UserError, nearest
from lumoe.files import read_json, read_yaml
from lumoe.resources import data_path

Confidence = Literal["measured", "published", "summary", "fitted", "assumed"]


class Record(BaseModel):
    """A part of a profile; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Sourced(Record):
    """One number, where it comes from, and how far it is to be trusted."""

    value: float = Field(ge=0, allow_inf_nan=False)
    source: str
    confidence: Confidence


class Seconds(Record):
    """Time of one operation against the number of tokens it handles; linear between and beyond the entries.

    `tokens` rises; one entry alone means a time that does not depend on the number of tokens.
    """

    tokens: list[int] = Field(min_length=1)
    seconds: list[float] = Field(min_length=1)
    source: str
    confidence: Confidence

    @model_validator(mode="after")
    def _consistent(self) -> Seconds:
        if len(self.tokens) != len(self.seconds):
            raise ValueError("'tokens' and 'seconds' must be equally long")
        if self.tokens[0] < 1 or any(b <= a for a, b in zip(self.tokens, self.tokens[1:], strict=False)):
            raise ValueError("'tokens' must rise from at least 1")
        if not all(0 <= value < float("inf") for value in self.seconds):
            raise ValueError("'seconds' must be finite and not negative")
        return self


class Transfer(Record):
    """Bringing one missed expert from the slow to the fast tier: `latency_s + bytes / bytes_per_s`."""

    latency_s: Sourced
    bytes_per_s: Sourced
    overlapped: bool = Field(default=False, description="the read runs beside the computation of other experts")


class Hardware(Record):
    """One machine as the cost model sees it.

    Attributes:
        fast_bytes: size of the fast tier.
        dense: time of one forward pass without its experts (attention, norms, routers, embedding, head), all layers.
        expert: bits per weight -> time of one expert; empty when `dense` already contains it (a profile fitted to the
            speed of a whole model).
        host: bits per weight -> time of one expert computed in host memory by a machine with a GPU, the way there and
            back included; empty where that is not done.
        hidden, intermediate: widths of the model that was timed.
        outside: weights outside its experts that the computation of a token uses; None in profiles that do not say.
        stored: codes of its files that its experts "at 16 bits" were computed from; empty for weights.
        layers: of the model that was timed; None in profiles that do not say.
        large: bits per weight -> time of one expert of `large_weights` weights on the same kernels, whatever model was
            timed: what weights cost is told apart by it from what a call costs. Empty where there is none.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    device: str
    fast_bytes: Sourced
    transfer: Transfer
    dense: Seconds
    expert: dict[int, Seconds] = {}
    host: dict[int, Seconds] = {}
    hidden: int = Field(ge=1)
    intermediate: int = Field(ge=1)
    outside: int | None = Field(default=None, ge=1)
    stored: str = ""
    layers: int | None = Field(default=None, ge=1)
    large: dict[int, Seconds] = {}
    large_weights: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> Hardware:
        if self.transfer.bytes_per_s.value <= 0:
            raise ValueError("'transfer.bytes_per_s' must be above 0")
        if self.large and self.large_weights is None:
            raise ValueError("'large_weights' must say what 'large' was timed on")
        return self


def read_hardware(name_or_path: str | Path) -> Hardware:
    """Read a profile: a `.yaml`/`.json` file, or the name of a shipped one (`data/hardware/NAME.yaml`).

    Raises:
        UserError: there is no such profile, or it is ill-formed; the message names the file and the field.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".json"):
        path = data_path("hardware", f"{name_or_path}.yaml")
        if not path.is_file():
            shipped = [file.stem for file in data_path("hardware").glob("*.yaml")]
            raise UserError(
                f"hardware profile '{name_or_path}' is neither a file nor shipped{nearest(str(name_or_path), shipped)}"
            )
    try:
        return Hardware.model_validate(read_json(path) if path.suffix == ".json" else read_yaml(path))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: at '{where}': {first['msg'].removeprefix('Value error, ')}") from None

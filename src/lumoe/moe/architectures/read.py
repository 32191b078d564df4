"""From a model's `config.json`, or a shipped shape, to its architecture."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from lumoe.errors import UserError, nearest
from lumoe.files import read_json, read_yaml
from lumoe.moe.architectures import families
from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.config import Config
from lumoe.moe.architectures.names import Names
from lumoe.resources import data_path


class Family(Protocol):
    """A module of `families`."""

    MODEL_TYPES: tuple[str, ...]
    ABOUT: tuple[About, ...]
    NAMES: Names

    def settings(self, config: Config) -> dict[str, Any]:
        """Return an architecture's fields."""
        ...


@lru_cache(maxsize=1)
def known_families() -> dict[str, Family]:
    """Return `model_type` -> family, for every family that there is."""
    return {kind: family for family in families.ALL for kind in family.MODEL_TYPES}


def read_architecture(folder: str | Path) -> Architecture:
    """Read the `config.json` of a model folder.

    Raises:
        UserError: it is absent, of a family that is not known, or asks for something that the engine does not compute.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such model folder")
    path = Path(folder) / "config.json"
    return parse_config(path, read_json(path))


def read_shape(name_or_path: str | Path) -> Architecture:
    """Read a model folder, its `config.json`, or a shipped shape by its name (`data/shapes/NAME.yaml`).

    Raises:
        UserError: there is none, its family is not known, or a field is missing or wrong.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / "config.json"
    if path.suffix == ".json":
        return parse_config(path, read_json(path))
    path = path if path.suffix == ".yaml" else data_path("shapes", f"{name_or_path}.yaml")
    if not path.is_file():
        shipped = [file.stem for file in data_path("shapes").glob("*.yaml")]
        raise UserError(f"model '{name_or_path}' is neither a folder nor a shipped shape{nearest(path.stem, shipped)}")
    values = read_yaml(path)
    if isinstance(values, dict):
        values = {key: value for key, value in values.items() if key not in SHAPE_KEYS}
    return parse_config(path, values)


# What a shipped shape says beside the keys of its model's configuration.
SHAPE_KEYS = ("source", "confidence", "hardware", "parameters")


def parse_config(path: Path, values: Any) -> Architecture:
    """Return the architecture that the `values` of a configuration file stand for.

    Raises:
        UserError: a family that is not known, or a key that is missing, wrong, or asks for what is not computed.
    """
    kind = values.get("model_type") if isinstance(values, dict) else values
    family = known_families().get(kind) if isinstance(kind, str) else None
    if family is None:
        known = sorted(known_families())
        raise UserError(
            f"{path}: the architecture is {str(kind)[:80]!r}{nearest(str(kind), known)}; supported: {', '.join(known)}"
        )
    if not getattr(family, "OWN_CODE", False):
        refuse_code(path, values)
    config = Config(path, values)
    try:
        fields = {**family.settings(config), "family": kind}
        config.check_nothing_left()
        result = Architecture.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: at '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: a value is of the wrong kind ({error})") from None
    if result.num_attention_heads % result.num_key_value_heads or result.num_experts_per_tok > result.num_local_experts:
        raise UserError(f"{path}: the numbers of heads, key-value heads, experts and experts per token do not agree")
    if len(result.dense_layers) >= result.num_hidden_layers:
        raise UserError(f"{path}: no layer has experts")
    return result


def refuse_code(path: Path, values: Mapping[str, Any]) -> None:
    """Raise UserError if a model's file names Python code to run: it is never run, and without it may mean another.

    Families that are published with code of their own, and are computed here without it, say so by `OWN_CODE`.
    """
    if values.get("auto_map") or values.get("trust_remote_code"):
        raise UserError(
            f"{path}: it names Python code in the model's folder (auto_map), which is never run; "
            "use a checkpoint that works without"
        )

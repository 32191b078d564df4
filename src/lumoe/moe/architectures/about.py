"""What people ask of a family before they open a model of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class About:
    """Models that a family is known by, and what its records do not say.

    Attributes:
        models: names that people know.
        shape: a shipped shape (`data/shapes`); router and attention of these models are read off it.
        kinds: their `model_type`s; empty: all of the family's.
        calls: mark that opens a call of a function in their chat templates, where the server reads it.
        held_to: programs whose logits tests hold theirs to.
    """

    models: str
    shape: str
    kinds: tuple[str, ...] = ()
    calls: str = ""
    held_to: tuple[Literal["transformers", "llama.cpp"], ...] = ()

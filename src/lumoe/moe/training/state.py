"""The state of a training run on disk: what a killed run goes on from. Tensors and JSON, nothing that could run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.sealed_tensors import load_tensors, save_tensors


def save_state(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer], record: Mapping[str, Any]) -> None:
    """Write the parameters, the optimizers and `record` (plain values), whole or not at all."""
    tensors = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    plain: list[dict[str, Any]] = []
    for number, optimizer in enumerate(optimizers):
        state = optimizer.state_dict()
        others: dict[str, dict[str, Any]] = {}
        for parameter, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"optimizer.{number}.{parameter}.{name}"] = value.detach().clone()
                else:
                    others.setdefault(str(parameter), {})[name] = value
        plain.append({"groups": state["param_groups"], "state": others})
    save_tensors(path, tensors, {"record": json.dumps(record), "optimizers": json.dumps(plain)})


def load_state(path: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Read what `save_state` wrote: state of the model, states of the optimizers, record.

    Raises:
        UserError: the file is damaged or holds something else.
    """
    tensors, metadata = load_tensors(path)
    try:
        plain, record = json.loads(metadata["optimizers"]), json.loads(metadata["record"])
    except KeyError:
        raise UserError(f"{path}: not the state of a training run; delete it to train from the start") from None
    model: dict[str, torch.Tensor] = {}
    states: list[dict[int, dict[str, Any]]] = [
        {int(parameter): dict(values) for parameter, values in part["state"].items()} for part in plain
    ]
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "model":
            model[rest] = value
        else:
            number, parameter, field = rest.split(".", 2)
            states[int(number)].setdefault(int(parameter), {})[field] = value
    optimizers = [{"state": state, "param_groups": part["groups"]} for state, part in zip(states, plain, strict=True)]
    return model, optimizers, record

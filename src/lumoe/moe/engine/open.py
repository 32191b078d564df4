"""Open a model where it is to run: with the processor's engine, or with a GPU's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lumoe.moe.checkpoint.weights import read_architecture
from lumoe.moe.engine import device_engine
from lumoe.moe.engine.engine import Engine
from lumoe.moe.offload.store import Policy
from lumoe.moe.planning.plan import Plan


def open_engine(
    model: str | Path,
    quantized: str | Path | Sequence[str | Path] | None = None,
    plan: Plan | None = None,
    budget_bytes: int | None = None,
    dtype: torch.dtype = torch.bfloat16,
    policy: Policy = "static",
    device: str = "cpu",
    recorded: bool = True,
    beside_bytes: int = 0,
) -> Engine:
    """Open a checkpoint on `device`: cpu, cuda or cuda:N; arguments as for `Engine.load`.

    On the processor the fast tier is RAM and the slow one the checkpoint's files. On a GPU the fast tier is its memory
    and the slow one pinned host memory: every expert that a plan has asked for stays there, at each of its precisions.

    Args:
        plan: by default every expert at 16 bits and resident; on a GPU without a budget, as many as its memory holds.
        recorded: on a GPU, whether decode steps are recorded as CUDA graphs, one for every set of sequences that
            decode together.
        beside_bytes: of a GPU's memory, what the caller will take for itself.

    Raises:
        UserError: the device is absent, a file is missing or damaged, or the plan does not fit the model or the budget.
    """
    folders = [quantized] if isinstance(quantized, str | Path) else list(quantized or [])
    if device == "cpu":
        return Engine.load(model, folders, plan, budget_bytes, dtype, policy)
    shape = read_architecture(Path(model)).plan_shape
    # Only an engine that is there knows how much memory its device has left.
    bare = Plan.uniform(*shape, resident=False)
    engine = device_engine.load(
        model, folders, bare, None, device, dtype, policy, recorded=recorded, beside_bytes=beside_bytes
    )
    engine.reconfigure(plan or Plan.uniform(*shape), budget_bytes)
    return engine

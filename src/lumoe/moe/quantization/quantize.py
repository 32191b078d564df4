"""Quantise all experts of a checkpoint one by one: bounded memory, resumable after a kill, with progress."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import pandas as pd
import torch

from lumoe.errors import UserError
from lumoe.files import write_csv
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.kernels.affine import AffineMatrix, looked_up, nearest
from lumoe.moe.model.activation import Gated, swiglu
from lumoe.moe.quantization.calibration import LayerInputs, fingerprint, walk
from lumoe.moe.quantization.custom import Quantizer, code_of, is_own, load_quantizer
from lumoe.moe.quantization.folder import (
    MANIFEST,
    TABLE,
    affine_tensors,
    codebook_tensors,
    expert_path,
    make_room,
    save_expert,
    write_manifest,
)
from lumoe.moe.quantization.nf4 import nf4
from lumoe.sealed_tensors import load_tensors

METHODS = ("gptq", "rtn", "nf4")
# The error of an expert is measured on at most so many of its tokens: enough for three digits, bounded in memory.
_TOKENS_FOR_ERROR = 4096
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How experts are quantised.

    Attributes:
        method: one of METHODS, or a function of the user's own (`lumoe.moe.quantization.custom`).
        least_tokens: an expert that fewer calibration tokens were routed to is rounded to nearest instead of GPTQ.
    """

    method: str = "gptq"
    bits: int = 4
    group_size: int = 64
    least_tokens: int = 128

    def __post_init__(self) -> None:
        if self.method not in METHODS and not is_own(self.method):
            known = f"{', '.join(METHODS)}, or your own MODULE:FUNCTION"
            raise UserError(f"quantisation method '{self.method}' is unknown; known: {known}")
        if self.bits not in (2, 3, 4, 8):
            raise UserError(f"experts can be quantised to 2, 3, 4 or 8 bits, not {self.bits}")
        if self.method == "nf4" and self.bits != 4:
            raise UserError(f"nf4 has 4 bits, not {self.bits}")


@dataclass(frozen=True)
class Outcome:
    """One quantised expert: a row of the table `experts.csv`.

    Attributes:
        tokens, frequency: calibration tokens routed to it, and their share of all.
        relative_error: ‖Δy‖ / ‖y‖ of its output over those tokens.
        weighted_error: mean over all calibration tokens of (router weight · ‖Δy‖)²: what quantising it costs the layer.
        bytes: codes, scales and zeros.
    """

    layer: int
    expert: int
    method: str
    bits: int
    group_size: int
    tokens: int
    frequency: float
    relative_error: float
    weighted_error: float
    bytes: int
    seconds: float


@torch.inference_mode()
def quantize(
    checkpoint: Checkpoint,
    tokens: torch.Tensor,
    folder: Path,
    recipe: Recipe,
    progress: Callable[[str], None] = log.info,
    force: bool = False,
) -> pd.DataFrame:
    """Quantise every expert into `folder`; experts that are there already, made the same way, are kept.

    In a finished folder each is verified, and none is made.

    Args:
        tokens: calibration tokens int64 `[sequences, sequence]`.
        force: remove experts that are there and were made another way, or of other weights.

    Returns:
        One row per expert (`Outcome`); also written as `experts.csv` before the manifest, which comes last.

    Raises:
        UserError: a group does not divide the expert's widths, the sequences are longer than the model was made for, a
            tensor of the checkpoint is damaged, or the folder holds something else.
    """
    a = checkpoint.architecture
    a.check_context(tokens.shape[1], checkpoint.folder)
    _check_widths(checkpoint, recipe)
    made = {**asdict(recipe), "calibration": fingerprint(tokens), "weights": checkpoint.identity}
    if is_own(recipe.method):
        made["code"] = code_of(recipe.method)
    key = json.dumps(made, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder can be made there ({error.strerror}); choose another --output") from None
    make_room(folder, key, force)
    rows = _all_finished(folder, a.plan_shape, key)
    if rows and (folder / MANIFEST).is_file() and (folder / TABLE).is_file():
        progress(f"{folder}: finished already, in the same way; nothing to do")
        return pd.DataFrame([asdict(row) for row in rows])
    # Until the new experts are all there, nothing may say that the folder is whole.
    (folder / MANIFEST).unlink(missing_ok=True)
    for outcome in () if rows else _outcomes(checkpoint, tokens, folder, recipe, key):
        rows.append(outcome)
        progress(_progress(rows, a.experts))
    table = pd.DataFrame([asdict(row) for row in rows])
    write_csv(folder / TABLE, table)
    shape = {
        name: getattr(a, name)
        for name in ("num_hidden_layers", "num_local_experts", "hidden_size", "intermediate_size")
    }
    layout = "codebook" if recipe.method == "nf4" else "affine"
    write_manifest(folder, {**made, "layout": layout, "shape": shape, "key": key})
    return table


def _check_widths(checkpoint: Checkpoint, recipe: Recipe) -> None:
    a = checkpoint.architecture
    for width in (a.hidden_size, a.intermediate_size):
        if width % 2 and recipe.bits <= 4:
            raise UserError(
                f"{checkpoint.folder}: two codes of {recipe.bits} bits share a byte, and the expert's width {width} is "
                "odd; quantise to 8 bits"
            )
        if width % recipe.group_size:
            largest = max(size for size in range(1, 129) if a.hidden_size % size == a.intermediate_size % size == 0)
            raise UserError(
                f"{checkpoint.folder}: groups of {recipe.group_size} do not divide the expert's width {width}; "
                f"the largest groups that do are of {largest}"
            )


def _outcomes(
    checkpoint: Checkpoint, tokens: torch.Tensor, folder: Path, recipe: Recipe, key: str
) -> Iterator[Outcome]:
    for inputs in walk(checkpoint, tokens):
        for expert in range(checkpoint.architecture.num_local_experts):
            done = _finished(folder, inputs.layer.index, expert, key)
            yield done or _quantize_expert(checkpoint, inputs, expert, folder, recipe, key)


def _quantize_expert(
    checkpoint: Checkpoint, inputs: LayerInputs, expert: int, folder: Path, recipe: Recipe, key: str
) -> Outcome:
    began = time.perf_counter()
    layer, activation = inputs.layer.index, inputs.layer.activation_of(expert)
    weights = [weight.float() for weight in checkpoint.expert(layer, expert)]
    hidden, shares = inputs.of(expert)
    method: str = recipe.method
    if method == "gptq" and len(hidden) < recipe.least_tokens:
        log.warning(
            "layer %d expert %d: %d calibration tokens, fewer than %d: rounded to nearest",
            *(layer, expert, len(hidden), recipe.least_tokens),
        )
        method = "rtn"
    tensors, approximate, method = quantize_matrices(weights, hidden, recipe, method, activation)
    relative, weighted = output_error(weights, approximate, hidden, shares, activation)
    outcome = Outcome(
        layer,
        expert,
        method,
        recipe.bits,
        recipe.group_size,
        tokens=len(hidden),
        frequency=len(hidden) / len(inputs.hidden),
        relative_error=relative,
        weighted_error=weighted * len(hidden) / len(inputs.hidden),
        bytes=sum(value.nbytes for name, value in tensors.items() if "codes" not in name)
        + sum(weight.numel() for weight in weights) * recipe.bits // 8,
        seconds=time.perf_counter() - began,
    )
    save_expert(folder, layer, expert, tensors, {"key": key, "outcome": json.dumps(asdict(outcome))})
    return outcome


def quantize_matrices(
    weights: list[torch.Tensor], hidden: torch.Tensor, recipe: Recipe, method: str, activation: Gated = swiglu
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor], str]:
    """Quantise w1, w2, w3 (in this order) of one expert whose inputs are `hidden [tokens, hidden]`.

    w2 is calibrated on what the quantised w1 and w3 give it.

    Returns:
        The tensors to store, the weights that they stand for in the same order, and the method that was used (round to
        nearest where GPTQ's equations have no solution).
    """
    w1, w2, w3 = weights
    if method == "nf4":
        found = [nf4(weight, recipe.group_size) for weight in weights]
        tensors: dict[str, torch.Tensor] = {}
        for name, parts in zip(("w1", "w2", "w3"), found, strict=True):
            tensors |= codebook_tensors(name, *parts)
        return tensors, [looked_up(*parts) for parts in found], method
    solve = _solver(method)
    matrices = _calibrated(solve, weights, hidden, recipe, activation) if solve else None
    if matrices is None:
        method = "rtn"
        matrices = [nearest(weight, recipe.bits, recipe.group_size) for weight in (w1, w2, w3)]
    tensors = {}
    for name, matrix in zip(("w1", "w2", "w3"), matrices, strict=True):
        tensors |= affine_tensors(name, matrix)
    return tensors, [matrix.dequantize() for matrix in matrices], method


def _solver(method: str) -> Quantizer | None:
    """Return the quantiser that looks at inputs, None for rounding to nearest."""
    if is_own(method):
        return load_quantizer(method)
    if method == "gptq":
        from lumoe.moe.quantization.gptq import gptq  # seconds to import, and other methods do without the library

        return gptq
    return None


def _calibrated(
    solve: Quantizer, weights: list[torch.Tensor], hidden: torch.Tensor, recipe: Recipe, activation: Gated
) -> list[AffineMatrix] | None:
    w1, w2, w3 = weights
    first = solve(w1, hidden, recipe.bits, recipe.group_size)
    third = solve(w3, hidden, recipe.bits, recipe.group_size)
    if first is None or third is None:
        return None
    between = activation(hidden @ first.dequantize().t(), hidden @ third.dequantize().t())
    second = solve(w2, between, recipe.bits, recipe.group_size)
    return None if second is None else [first, second, third]


def output_error(
    weights: list[torch.Tensor],
    approximate: list[torch.Tensor],
    hidden: torch.Tensor,
    shares: torch.Tensor,
    activation: Gated = swiglu,
) -> tuple[float, float]:
    """Return ‖Δy‖/‖y‖ and the mean of (share · ‖Δy‖)² over the expert's tokens; zeros when it has none."""
    if len(hidden) == 0:
        return 0.0, 0.0
    hidden, shares = hidden[:_TOKENS_FOR_ERROR], shares[:_TOKENS_FOR_ERROR]

    def output(w1: torch.Tensor, w2: torch.Tensor, w3: torch.Tensor) -> torch.Tensor:
        return activation(hidden @ w1.t(), hidden @ w3.t()) @ w2.t()

    exact = output(*weights)
    difference = output(*approximate) - exact
    relative = difference.norm() / exact.norm().clamp_min(torch.finfo(torch.float32).tiny)
    return float(relative), float((difference * shares.unsqueeze(1)).square().sum(dim=1).mean())


def _finished(folder: Path, layer: int, expert: int, key: str) -> Outcome | None:
    path = expert_path(folder, layer, expert)
    if not path.is_file():
        return None
    try:
        _, metadata = load_tensors(path)
    except UserError as error:
        log.warning("%s; it is made again", error)
        return None
    return Outcome(**json.loads(metadata["outcome"])) if metadata.get("key") == key else None


def _all_finished(folder: Path, shape: tuple[int, int], key: str) -> list[Outcome]:
    """Return the outcomes of all experts; none if one is not there, or damaged."""
    rows: list[Outcome] = []
    for layer, expert in product(*map(range, shape)):
        done = _finished(folder, layer, expert, key)
        if done is None:
            return []
        rows.append(done)
    return rows


def _progress(rows: list[Outcome], total: int) -> str:
    last = rows[-1]
    left = sum(row.seconds for row in rows) / len(rows) * (total - len(rows))
    return (
        f"{len(rows)}/{total} experts: layer {last.layer} expert {last.expert}, {last.method} {last.bits} bits, "
        f"{last.tokens} tokens, output error {last.relative_error:.4f}; about {left:.0f} s left"
    )

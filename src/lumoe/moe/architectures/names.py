"""Where a family's files keep a tensor: under which name, and which part of what is stored there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Part:
    """A tensor, or a part of one, in a checkpoint.

    Attributes:
        name: with `{e}` for the number of an expert.
        stacked: all experts are in one tensor, along its first axis.
        half: of the outputs: 0 is the first, 1 the second; None: all of them.
        interleaved: the halves take turns, output by output.
        transposed: stored as `[inputs, outputs]`.
        leading: stored with one more axis before the others, of length 1.
    """

    name: str
    stacked: bool = False
    half: int | None = None
    interleaved: bool = False
    transposed: bool = False
    leading: bool = False


# Names as an architecture's `tensors` has them, less their layer's prefix -> where they may be; the first found wins.
Names = Mapping[str, tuple[Part, ...]]

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_LAYER = re.compile(r"(model\.layers\.\d+\.)(.*)")


def network(ours: str, theirs: str) -> dict[str, tuple[Part, ...]]:
    """Return the names of a gated network's three matrices."""
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    return {f"{ours}.{name}.weight": (Part(f"{theirs}.{part}.weight"),) for name, part in parts.items()}


def fused(prefix: str, gate_up: str, down: str, *, interleaved: bool = False, transposed: bool = False) -> Names:
    """Return the names of experts that are stacked in two tensors, gate and up being one."""
    stored = Part(f"{prefix}.{gate_up}", stacked=True, interleaved=interleaved, transposed=transposed)
    below = Part(f"{prefix}.{down}", stacked=True, transposed=transposed)
    experts = "block_sparse_moe.experts.{e}"
    return {
        f"{experts}.w1.weight": (replace(stored, half=0),),
        f"{experts}.w2.weight": (below,),
        f"{experts}.w3.weight": (replace(stored, half=1),),
    }


def either(*names: Names) -> Names:
    """Return names that are looked for in one place after another."""
    found: dict[str, tuple[Part, ...]] = {}
    for each in names:
        for name, parts in each.items():
            found[name] = (*found.get(name, ()), *parts)
    return found


# What transformers 5 writes for most families, whatever its version 4 wrote.
FUSED = fused("mlp.experts", "gate_up_proj", "down_proj")
# Mixtral's own names are those that an architecture has.
MIXTRAL = either(
    {f"block_sparse_moe.experts.{{e}}.{n}.weight": (Part(f"block_sparse_moe.experts.{{e}}.{n}.weight"),)
     for n in ("w1", "w2", "w3")},
    {"block_sparse_moe.gate.weight": (Part("block_sparse_moe.gate.weight"), Part("mlp.gate.weight"))},
    FUSED,
)  # fmt: skip
QWEN = either(
    {"block_sparse_moe.gate.weight": (Part("mlp.gate.weight"),)},
    network("block_sparse_moe.experts.{e}", "mlp.experts.{e}"),
    network("mlp", "mlp"),
    FUSED,
)
# DeepSeek's, which several others took over.
DEEPSEEK = {
    **QWEN,
    **network("block_sparse_moe.shared", "mlp.shared_experts"),
    "block_sparse_moe.gate.correction": (Part("mlp.gate.e_score_correction_bias"),),
}


def places(names: Names, name: str, root: str = "model.") -> tuple[tuple[Part, ...], int]:
    """Return where a tensor of an architecture may be, as full names, and the number of its expert (0 for others).

    Args:
        root: what the files' names begin with where those of a language model alone begin with `model.`.
    """
    layer = _LAYER.fullmatch(name)
    prefix, rest = (layer[1], layer[2]) if layer else ("", name)
    numbered = _EXPERT.search(rest)
    expert = int(numbered[1]) if numbered else 0
    key = _EXPERT.sub(".experts.{e}.", rest) if numbered else rest
    parts = names.get(key, (Part(rest),))

    def full(part: Part) -> str:
        found = prefix + part.name.replace("{e}", str(expert))
        return root + found.removeprefix("model.") if found.startswith("model.") else found

    return tuple(replace(part, name=full(part)) for part in parts), expert

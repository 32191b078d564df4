"""Parameters and bytes of a model's parts: of the tensors in its files, or computed from its configuration alone."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.names import places
from lumoe.moe.architectures.read import known_families
from lumoe.moe.checkpoint.formats import Fp8, Int4
from lumoe.moe.checkpoint.safetensors import DTYPES, Entry
from lumoe.moe.checkpoint.storage import FP8_BLOCK, MXFP4_GROUP
from lumoe.moe.checkpoint.stored import Affine, Coded, Rearranged, Stored
from lumoe.moe.checkpoint.weights import Checkpoint, expert_name
from lumoe.moe.kernels.blocks import FORMATS
from lumoe.moe.planning.parts import BIASES, EMBEDDINGS, EXPERTS, PARTS, Parts, PartSize
from lumoe.moe.planning.plan import FULL_BITS

_EXPERT = re.compile(r"model\.layers\.(\d+)\.block_sparse_moe\.experts\.(\d+)\.w\d\.(weight|bias)")
_MATRICES = ("w1", "w2", "w3")
_SHORT = {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}
_NAMES = {kind: _SHORT[name] for name, kind in DTYPES.items()}


def part_of(name: str) -> str:
    """Return the part that a tensor of an architecture belongs to, by the name that Mixtral's has, or would have.

    Attention has its biases and its own norms, Gated DeltaNet counts as attention, the head is among the embeddings.
    """
    if expert := _EXPERT.fullmatch(name):
        return EXPERTS if expert[3] == "weight" else BIASES
    for mark, part in (
        ("attn.", "attention"),
        ("norm.", "norms"),
        (".block_sparse_moe.shared.", "shared experts"),
        (".block_sparse_moe.gate.", "routers"),
        (".mlp.", "dense layers"),
    ):
        if mark in name:
            return part
    return EMBEDDINGS


@dataclass
class _Sum:
    parameters: int = 0
    nbytes: int = 0
    formats: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, parameters: int, nbytes: int, form: str) -> None:
        self.parameters += parameters
        self.nbytes += nbytes
        self.formats[form] += nbytes


def of_files(checkpoint: Checkpoint, source: str) -> Parts:
    """Return the sizes of a checkpoint's parts, as its files have them."""
    sums: dict[str, _Sum] = defaultdict(_Sum)
    layers: dict[int, int] = defaultdict(int)
    seen: set[str] = set()
    for name, shape in checkpoint.architecture.tensors():
        stored, part = checkpoint.stored(name), part_of(name)
        fresh = {entry.name for entry in stored.entries} - seen
        nbytes = sum(checkpoint.entries[key].nbytes for key in fresh)
        seen |= fresh
        sums[part].add(math.prod(shape), nbytes, format_of(stored))
        if part == EXPERTS:
            layers[int(name.split(".")[2])] += nbytes
    unused = sum(entry.nbytes for key, entry in checkpoint.entries.items() if key not in seen)
    return _parts(checkpoint.architecture, sums, layers.values(), source, unused)


def of_config(architecture: Architecture, values: Mapping[str, Any], source: str) -> Parts:
    """Return the sizes that a model's parts have in files such as its configuration speaks of.

    Weights have 16 bits, or 32 where the configuration says so. Where it has a `quantization_config`, the matrices that
    such files quantise have the bits and scales of that format: fp8, GPTQ and AWQ those of attention, of experts and of
    dense layers, MXFP4 those of routed experts, in each case without the modules that it names as left out.

    Raises:
        UserError: the `quantization_config` has something else than groups of weights, or names of modules.
    """
    coding = _Coding(architecture, values)
    sums: dict[str, _Sum] = defaultdict(_Sum)
    for name, shape in architecture.tensors(experts=False):
        sums[part_of(name)].add(math.prod(shape), *coding.size(name, shape))
    count, layers = architecture.num_local_experts, []
    hidden, wide = architecture.hidden_size, architecture.intermediate_size
    for layer in architecture.moe_layers:
        each = 0
        for matrix in _MATRICES:
            shape = (hidden, wide) if matrix == "w2" else (wide, hidden)
            nbytes, form = coding.size(expert_name(layer, 0, matrix), shape)
            sums[EXPERTS].add(count * math.prod(shape), count * nbytes, form)
            each += nbytes
        layers.append(count * each)
    return _parts(architecture, sums, layers, source)


def _parts(
    architecture: Architecture, sums: Mapping[str, _Sum], layers: Iterable[int], source: str, unused: int = 0
) -> Parts:
    each = [nbytes // architecture.num_local_experts for nbytes in layers]
    sizes = []
    for name in PARTS:
        if name in sums:
            found = sums[name]
            formats = tuple(sorted(found.formats, key=lambda form: (-found.formats[form], form)))
            routed = (architecture.experts, (min(each), max(each))) if name == EXPERTS else (1, (found.nbytes,) * 2)
            sizes.append(PartSize(name, found.parameters, found.nbytes, formats, *routed))
    experts = len(architecture.moe_layers) * architecture.num_experts_per_tok * architecture.expert_parameters
    return Parts(sizes, architecture.outside_parameters_per_token + experts, source, unused)


def format_of(stored: Stored) -> str:
    """Return what a tensor's weights are stored as, in a word."""
    if isinstance(stored, Coded):
        return stored.kind
    if isinstance(stored, Int4):
        return "awq" if stored.awq else "gptq"
    entry = stored.entry if isinstance(stored, Rearranged | Fp8) else stored
    return "fp8" if isinstance(stored, Fp8) else _NAMES[entry.dtype] if isinstance(entry, Entry) else "codes"


def codes_of(stored: Stored) -> str:
    """Return what the codes are called that a matrix is computed from, such as MXFP4; empty for weights."""
    return stored.kind if isinstance(stored, Coded) else "int4" if isinstance(stored, Affine) else ""


def held_bits(stored: Stored) -> float:
    """Return the bits per weight of a matrix in memory: those of its codes, where there is arithmetic for them."""
    if isinstance(stored, Coded):
        return FORMATS[stored.kind].bits_per_weight
    return 4 + 32 / stored.group if isinstance(stored, Affine) else FULL_BITS


@dataclass(frozen=True)
class Held:
    """What a model takes in memory where its experts are computed from codes of its files.

    Attributes:
        codes: their names.
        expert: bytes of the largest expert.
        outside: bytes of everything else.
    """

    codes: str
    expert: int
    outside: int


def held(checkpoint: Checkpoint) -> Held | None:
    """Return what a checkpoint takes in memory; None where its experts become 16-bit weights."""
    architecture = checkpoint.architecture
    codes, largest = set[str](), 0
    layers, count = architecture.plan_shape
    for layer in range(layers):
        for expert in range(count):
            matrices = [checkpoint.stored(name) for name in checkpoint.expert_names(layer, expert)]
            coded = all(isinstance(m, Coded) for m in matrices) or all(isinstance(m, Affine) for m in matrices)
            sizes = [_bytes_at(held_bits(m) if coded else FULL_BITS, m.shape) for m in matrices]
            largest = max(largest, sum(sizes))
            codes.update(codes_of(m) for m in matrices if coded)
    if not codes:
        return None
    outside = 0
    for name, shape in architecture.tensors(experts=False):
        stored = checkpoint.stored(name)
        outside += _bytes_at(held_bits(stored) if isinstance(stored, Coded) else FULL_BITS, shape)
    return Held(" and ".join(sorted(codes)), largest, outside)


def _bytes_at(bits: float, shape: tuple[int, ...]) -> int:
    return int(bits * math.prod(shape)) // 8


class _Coding:
    """Bytes and formats of tensors, as a configuration has them."""

    def __init__(self, architecture: Architecture, values: Mapping[str, Any]) -> None:
        self._names = known_families()[architecture.family].NAMES
        settings = values.get("quantization_config") or {}
        self._settings = settings
        self.method = str(settings.get("quant_method", ""))
        text = values.get("text_config") or {}
        dtype = str(values.get("dtype") or values.get("torch_dtype") or text.get("dtype") or "").removeprefix("torch.")
        self._plain = {"float32": (4, "fp32"), "float16": (2, "fp16")}.get(dtype, (2, "bf16"))
        left_out = settings.get("modules_to_not_convert") or settings.get("ignored_layers") or []
        if not isinstance(left_out, list):
            raise UserError(f"'modules_to_not_convert' must be a list of names, not {str(left_out)[:80]!r}")
        self._group = settings.get("group_size", settings.get("q_group_size", 128))
        grouped = self.method in ("gptq", "awq")
        if grouped and (type(self._group) is not int or (self._group < 1 and self._group != -1)):
            raise UserError(f"'group_size' must be a number of weights or -1, not {str(self._group)[:80]!r}")
        # GPTQ's are regular expressions; the few that there are say no more than a pattern does.
        rules = [str(rule)[2:] for rule in settings.get("dynamic") or () if str(rule).startswith("-:")]
        self._left_out = [*map(str, left_out), *(rule.replace("\\.", ".").replace(".*", "*") for rule in rules)]
        coded = {EXPERTS} if self.method == "mxfp4" else {EXPERTS, "attention", "shared experts", "dense layers"}
        self._coded = coded if self.method else set[str]()

    def size(self, name: str, shape: tuple[int, ...]) -> tuple[int, str]:
        """Return the bytes of a tensor in its file, and their format."""
        if len(shape) != 2 or shape[0] == 1 or part_of(name) not in self._coded or self._is_left_out(name):
            each, form = self._plain
            return each * math.prod(shape), form
        rows, inputs = shape
        if self.method == "mxfp4":
            return rows * inputs // 2 + rows * inputs // MXFP4_GROUP, "MXFP4"
        if self.method == "fp8":
            high, wide = self._settings.get("weight_block_size") or FP8_BLOCK
            return rows * inputs + 4 * math.ceil(rows / high) * math.ceil(inputs / wide), "fp8"
        groups = 1 if self._group == -1 else inputs // self._group
        order = 4 * inputs if self.method == "gptq" else 0
        return rows * inputs // 2 + rows * groups * 2 + rows * groups // 2 + order, self.method

    def _is_left_out(self, name: str) -> bool:
        return any(
            module == rule or fnmatchcase(module, f"{rule}.*") or fnmatchcase(module, f"*{rule}")
            for module in self._modules(name)
            for rule in self._left_out
        )

    def _modules(self, name: str) -> Iterator[str]:
        for part in places(self._names, name)[0]:
            yield part.name.removesuffix(".weight")

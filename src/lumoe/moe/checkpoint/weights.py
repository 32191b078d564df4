"""A Mixtral checkpoint in Hugging Face format, read tensor by tensor: nothing is in memory before it is asked for."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, ValidationError

from lumoe.errors import UserError
from lumoe.files import read_json, unique_keys
from lumoe.moe.checkpoint.manifest import verify_recorded
from lumoe.moe.planning.shape import ModelShape

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"U8": torch.uint8, "I8": torch.int8, "I32": torch.int32}
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The header of a 50-GB shard is a few MB; a larger length means that the file is not safetensors.
LARGEST_HEADER = 100 << 20
_PIECE = 1 << 18  # values that are looked at together


class Architecture(ModelShape):
    """Everything in a Mixtral `config.json` that the forward pass depends on."""

    model_type: str
    rms_norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    rope_theta: float = Field(default=1e6, gt=0, allow_inf_nan=False)
    sliding_window: int | None = None
    max_position_embeddings: int = Field(default=32768, ge=1)
    hidden_act: str = "silu"
    rope_scaling: dict[str, Any] | None = None

    def check_context(self, tokens: int, model: str | Path = "this model") -> None:
        """Refuse sequences of more tokens than the model was made for: what it says of them means nothing.

        Raises:
            UserError: there are more.
        """
        if tokens > self.max_position_embeddings:
            raise UserError(
                f"a context of {tokens} tokens exceeds the {self.max_position_embeddings} that {model} was made for"
            )


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `nbytes` bytes at `offset` of the file `path`."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def expert_name(layer: int, expert: int, matrix: str) -> str:
    """Name of one expert matrix (`w1`, `w2` or `w3`) in a checkpoint."""
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight"


class Checkpoint:
    """A folder with `config.json` and one or several safetensors files."""

    def __init__(self, folder: str | Path) -> None:
        """Read the configuration and the headers, and check every tensor's presence, shape, type and extent.

        Raises:
            UserError: the folder, a shard or a tensor is missing, a file is truncated, a shape is wrong, the
                architecture is not Mixtral, or a file is not the one that the folder's manifest records.
        """
        self.folder = Path(folder)
        verify_recorded(self.folder)
        self.architecture = read_architecture(self.folder)
        self.entries = _entries(self.folder)
        self._check_tensors()

    def entry(self, name: str) -> Entry:
        """Return where tensor `name` lies."""
        try:
            return self.entries[name]
        except KeyError:
            raise UserError(f"{self.folder}: the tensor '{name}' is missing") from None

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            UserError: it holds NaN or infinite values, or the file ends too early.
        """
        entry = self.entry(name)
        raw = torch.empty(entry.nbytes, dtype=torch.uint8)
        with entry.path.open("rb", buffering=0) as file:
            file.seek(entry.offset)
            view, got = memoryview(raw.numpy().data), 0
            while got < entry.nbytes and (step := file.readinto(view[got:])):
                got += step
            # What was read is held once: in the tensor, not in the page cache as well.
            os.posix_fadvise(file.fileno(), entry.offset, entry.nbytes, os.POSIX_FADV_DONTNEED)
        if got < entry.nbytes:
            raise UserError(f"{entry.path}: the tensor '{name}' is cut off; fetch the file again")
        value = raw.view(entry.dtype).view(entry.shape)
        check_finite(value, entry.path, name)
        return value

    def expert(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read w1 `[intermediate, hidden]`, w2 `[hidden, intermediate]` and w3 `[intermediate, hidden]`."""
        w1, w2, w3 = (self.tensor(expert_name(layer, expert, matrix)) for matrix in ("w1", "w2", "w3"))
        return w1, w2, w3

    def _check_tensors(self) -> None:
        # One by one: a configuration that asks for a billion layers fails at the first that is not there.
        for name, shape in _shapes(self.architecture):
            entry = self.entry(name)
            if entry.shape != shape:
                raise UserError(
                    f"{entry.path}: the tensor '{name}' has shape {list(entry.shape)}, config.json says {list(shape)}"
                )


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json`.

    Raises:
        UserError: it is absent, is not a Mixtral's, or asks for something that the engine does not compute.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    values = read_json(path)
    kind = values.get("model_type") if isinstance(values, dict) else values
    if kind != "mixtral":
        raise UserError(f"{path}: the architecture is {str(kind)[:80]!r}, only 'mixtral' is supported")
    refuse_code(path, values)
    # transformers 5 nests the rotary settings; 4.x has the base at the top level.
    rotary = values.get("rope_parameters") or {}
    if not isinstance(rotary, dict):
        raise UserError(f"{path}: at 'rope_parameters': a mapping is expected")
    if "rope_theta" in rotary:
        values = {**values, "rope_theta": rotary["rope_theta"]}
    try:
        result = Architecture.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UserError(f"{path}: at '{'.'.join(map(str, first['loc']))}': {first['msg']}") from None
    scaling = (result.rope_scaling or rotary).get("rope_type", "default")
    if result.hidden_act != "silu" or scaling != "default":
        raise UserError(f"{path}: activation '{result.hidden_act}' with rope type '{scaling}' is not supported")
    if result.num_attention_heads % result.num_key_value_heads or result.num_experts_per_tok > result.num_local_experts:
        raise UserError(f"{path}: the numbers of heads, key-value heads, experts and experts per token do not agree")
    return result


def refuse_code(path: Path, values: Mapping[str, Any]) -> None:
    """Raise UserError if a model's file names Python code to run: it is never run, and without it may mean another."""
    if values.get("auto_map") or values.get("trust_remote_code"):
        raise UserError(
            f"{path}: it names Python code in the model's folder (auto_map), which is never run; "
            "use a checkpoint that works without"
        )


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor that a checkpoint of this architecture must have."""
    return dict(_shapes(architecture))


def _shapes(a: Architecture) -> Iterator[tuple[str, tuple[int, ...]]]:
    query, key_value = a.num_attention_heads * a.head_width, a.num_key_value_heads * a.head_width
    yield "model.embed_tokens.weight", (a.vocab_size, a.hidden_size)
    yield "model.norm.weight", (a.hidden_size,)
    if not a.tie_word_embeddings:
        yield "lm_head.weight", (a.vocab_size, a.hidden_size)
    for layer in range(a.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (a.hidden_size,)
        yield f"{prefix}.post_attention_layernorm.weight", (a.hidden_size,)
        yield f"{prefix}.self_attn.q_proj.weight", (query, a.hidden_size)
        yield f"{prefix}.self_attn.k_proj.weight", (key_value, a.hidden_size)
        yield f"{prefix}.self_attn.v_proj.weight", (key_value, a.hidden_size)
        yield f"{prefix}.self_attn.o_proj.weight", (a.hidden_size, query)
        yield f"{prefix}.block_sparse_moe.gate.weight", (a.num_local_experts, a.hidden_size)
        for expert in range(a.num_local_experts):
            yield expert_name(layer, expert, "w1"), (a.intermediate_size, a.hidden_size)
            yield expert_name(layer, expert, "w2"), (a.hidden_size, a.intermediate_size)
            yield expert_name(layer, expert, "w3"), (a.intermediate_size, a.hidden_size)


def check_finite(value: torch.Tensor, path: Path, name: str) -> None:
    """Raise UserError if `value` holds NaN or infinity.

    Both survive a sum; only a suspicious one is looked at closely. A sum in float32 copies what it sums, so pieces.
    """
    for piece in torch.split(value.flatten(), _PIECE):
        if not torch.isfinite(piece.sum(dtype=torch.float32)) and not torch.isfinite(piece).all():
            raise UserError(f"{path}: the tensor '{name}' holds NaN or infinite values")


def _entries(folder: Path) -> dict[str, Entry]:
    index = folder / INDEX
    if not index.is_file():
        if not (folder / SINGLE).is_file():
            raise UserError(f"{folder}: neither {SINGLE} nor {INDEX} is there; weights are read from safetensors only")
        return read_header(folder / SINGLE)
    record = read_json(index)
    placed = record.get("weight_map") if isinstance(record, dict) else None
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise UserError(f"{index}: 'weight_map' (tensor name -> file name) is missing")
    shards, here = {}, {path.name for path in folder.iterdir()}
    for shard in sorted(set(placed.values())):
        path = folder / shard
        if shard not in here or not path.is_file():
            raise UserError(f"{folder}: the shard '{shard}' named in {INDEX} is missing")
        shards[shard] = read_header(path)
    for name, shard in placed.items():
        if name not in shards[shard]:
            raise UserError(f"{folder / shard}: the tensor '{name}' is missing")
    return {name: shards[shard][name] for name, shard in placed.items()}


def read_header(path: Path) -> dict[str, Entry]:
    """Return name -> entry of a safetensors file: 8 bytes of header length, a JSON header, the tensors' bytes.

    Raises:
        UserError: the file is absent, not safetensors, or its tensors do not fill it without gap and overlap.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError(f"implausible header length in a file of {size} bytes")
            header = json.loads(file.read(length), object_pairs_hook=unique_keys)
        header.pop("__metadata__", None)
        start = 8 + length
        entries = {name: _entry(path, name, value, start) for name, value in header.items()}
        _check_extent(path, entries, start, size)
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, struct.error, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch the file again") from None
    return entries


def _entry(path: Path, name: str, value: Mapping[str, Any], start: int) -> Entry:
    dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    kind = {**DTYPES, **INTEGERS}.get(dtype)
    if kind is None:
        raise UserError(f"{path}: the tensor '{name}' has type {dtype}; known: {', '.join(DTYPES)}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise UserError(f"{path}: the tensor '{name}' has a shape or offsets that are no whole numbers from 0")
    if math.prod(shape) * kind.itemsize != end - begin:
        raise UserError(f"{path}: the tensor '{name}' of shape {shape} cannot take {end - begin} bytes")
    return Entry(path, kind, tuple(shape), start + begin, end - begin)


def _check_extent(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Raise UserError unless the tensors fill the file from `start` on: a shifted offset would read other weights."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != at:
            raise UserError(f"{path}: a gap or an overlap before the tensor '{name}'; fetch the file again")
        at += entry.nbytes
        if at > size:
            raise UserError(f"{path}: the tensor '{name}' is cut off at {size} bytes; fetch the file again")
    if at != size:
        raise UserError(f"{path}: {size - at} bytes after the last tensor; fetch the file again")

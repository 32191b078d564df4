"""A checkpoint, read tensor by tensor: nothing is in memory before it is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.files import read_json
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.names import places
from lumoe.moe.architectures.read import known_families, read_architecture
from lumoe.moe.checkpoint.formats import Format
from lumoe.moe.checkpoint.gguf_file import Blocks, model_folder, read_listing
from lumoe.moe.checkpoint.gguf_places import find_in_gguf, gguf_places, made_of_others
from lumoe.moe.checkpoint.identity import identity
from lumoe.moe.checkpoint.manifest import verify_recorded
from lumoe.moe.checkpoint.safetensors import Entry, read_entries, read_once
from lumoe.moe.checkpoint.stored import Stored, find

_PIECE = 1 << 18  # values that are looked at together
# Tensors that files have and that no forward pass here needs: positions are computed, further tokens are not predicted
# ahead, images are not looked at.
_NOT_NEEDED = re.compile(
    r"rope_(freqs|factors_long|factors_short)\.weight|.*rotary_emb\.inv_freq|(model\.)?(mtp|visual|vision_tower|multi_modal_projector)\..*|model\.visual\..*"
)
# What the names of a language model's layers begin with, where they are not alone in their files.
_ROOTS = ("model.language_model.", "language_model.model.")
_LAYER = re.compile(r"(?:model\.layers|blk)\.(\d+)\..*")


def expert_name(layer: int, expert: int, matrix: str) -> str:
    """Name of one expert matrix (`w1`, `w2` or `w3`), by the number of its layer in the model."""
    return f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight"


class Checkpoint:
    """A folder with `config.json` and one or several safetensors files, or a model in GGUF files.

    Tensors have the names that Mixtral's have, or would have, whatever their family's files call them.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read the configuration and the headers, and check every tensor's presence, shape, type and extent.

        Raises:
            UserError: the folder, a shard or a tensor is missing, a file is truncated, a shape is wrong, a tensor is
                there that the configuration does not know, the architecture is not known, or a file is not the one
                that the folder's manifest records.
        """
        self.folder = model_folder(folder)
        verify_recorded(self.folder)
        self.architecture = read_architecture(self.folder)
        path = self.folder / "config.json"
        stored_as = read_json(path).get("quantization_config")
        self._format = Format(path, stored_as) if stored_as else None
        listed = read_listing(self.folder)
        self._gguf = listed is not None
        self.entries: Mapping[str, Entry | Blocks] = read_entries(self.folder) if listed is None else listed
        self._names = known_families()[self.architecture.family].NAMES
        self._stored: dict[str, Stored] = {}
        self._check_tensors()

    def stored(self, name: str) -> Stored:
        """Return where tensor `name` lies.

        Raises:
            UserError: it is missing.
        """
        try:
            return self._stored[name]
        except KeyError:
            raise UserError(f"{self.folder}: the tensor '{name}' is missing") from None

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor.

        Raises:
            UserError: it holds NaN or infinite values, or the file ends too early.
        """
        stored = self.stored(name)
        value = stored.read()
        check_finite(value, stored)
        return value

    def expert(self, layer: int, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read w1 `[intermediate, hidden]`, w2 `[hidden, intermediate]` and w3 `[intermediate, hidden]`."""
        with read_once():
            w1, w2, w3 = (self.tensor(name) for name in self.expert_names(layer, expert))
        return w1, w2, w3

    def expert_names(self, layer: int, expert: int) -> tuple[str, str, str]:
        """Return the names of w1, w2 and w3; `layer` counts the layers that have experts, as plans do."""
        at = self.architecture.moe_layers[layer]
        return expert_name(at, expert, "w1"), expert_name(at, expert, "w2"), expert_name(at, expert, "w3")

    @cached_property
    def files(self) -> list[Path]:
        """Every file of weights."""
        return sorted({entry.path for entry in self.entries.values()})

    @cached_property
    def identity(self) -> str:
        """What tells these weights from others of the same shape, see `lumoe.moe.checkpoint.identity`.

        Raises:
            UserError: a file cannot be read or ends too early.
        """
        return identity((name, shape, self.stored(name).entries) for name, shape in self.architecture.tensors())

    def _check_tensors(self) -> None:
        # One by one: a configuration that asks for a billion layers fails at the first that is not there.
        used = set[str]()
        root = next((root for root in _ROOTS if any(name.startswith(root) for name in self.entries)), "model.")
        for name, shape in self.architecture.tensors():
            stored = self._find(name, root)
            if shape != stored.shape == shape[1:] and shape[0] == 1:
                stored = stored.part(0, 1, shape)  # type: ignore[attr-defined]  # a matrix of one row is a vector there
            if stored.shape != shape:
                raise UserError(
                    f"{stored.path}: the tensor '{stored.name}' has shape {list(stored.shape)}, "
                    f"config.json says {list(shape)}"
                )
            used.update(entry.name for entry in stored.entries)
            self._stored[name] = stored
        for name in sorted(self.entries.keys() - used):
            if not self._not_needed(name):
                raise UserError(
                    f"{self.entries[name].path}: the tensor '{name}' has no place in the architecture of config.json; "
                    "without it the model would compute something else"
                )

    def _find(self, name: str, root: str) -> Stored:
        parts, expert = gguf_places(name) if self._gguf else places(self._names, name, root)
        experts = self.architecture.num_local_experts
        for part in parts:
            found: Stored | None
            if self._gguf:
                found = find_in_gguf(self.entries, part, expert, experts)
            else:
                entries: Any = self.entries
                coded = self._format.find(entries, part, expert, experts) if self._format else None
                found = coded or find(entries, part, expert, experts)
            if found is not None:
                return found
        if self._gguf and (made := made_of_others(self.entries, name, self.architecture)):
            return made
        looked_for = " or ".join(f"'{part.name}'" for part in parts) or f"'{name}'"
        raise UserError(f"{self.folder}: the tensor {looked_for} is missing")

    def _not_needed(self, name: str) -> bool:
        layer = _LAYER.fullmatch(name)
        beyond = layer is not None and int(layer[1]) >= self.architecture.num_hidden_layers
        tied = self.architecture.tie_word_embeddings and name == "lm_head.weight"
        return beyond or tied or _NOT_NEEDED.fullmatch(name) is not None


def expected_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a model of this architecture."""
    return dict(architecture.tensors())


def check_finite(value: torch.Tensor, stored: Stored) -> None:
    """Raise UserError if `value` holds NaN or infinity.

    Both survive a sum; only a suspicious one is looked at closely. A sum in float32 copies what it sums, so pieces.
    """
    for piece in torch.split(value.flatten(), _PIECE):
        if not torch.isfinite(piece.sum(dtype=torch.float32)) and not torch.isfinite(piece).all():
            raise UserError(f"{stored.path}: the tensor '{stored.name}' holds NaN or infinite values")

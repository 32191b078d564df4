"""Tensors in a safetensors file that carries the SHA-256 of what it holds: read whole and undamaged, or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from lumoe.errors import UserError
from lumoe.files import atomic_path

DIGEST = "sha256"


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write `tensors` and `metadata`, whole or not at all, with a digest over both."""
    whole = {name: value.contiguous() for name, value in tensors.items()}
    content = save(whole, {**metadata, DIGEST: digest(whole, metadata)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read what `save_tensors` wrote: tensors and metadata.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except Exception as error:  # safetensors has an error type of its own
        raise UserError(f"{path}: not a whole safetensors file ({error}); delete it and make it again") from None
    expected = metadata.pop(DIGEST, "")
    if digest(tensors, metadata) != expected:
        raise UserError(f"{path}: damaged (not what its SHA-256 says); delete it and make it again")
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of what `save_tensors` wrote, from the head of the file; its tensors are not verified.

    Raises:
        UserError: there is no such file, or it does not begin as one.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # as in `load_tensors`
        raise UserError(f"{path}: not a whole safetensors file ({error}); delete it and make it again") from None


def digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    """Return the hexadecimal SHA-256 over metadata and tensors (name, type, shape, bytes), whatever their order."""
    total = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, value in sorted(tensors.items()):
        total.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()

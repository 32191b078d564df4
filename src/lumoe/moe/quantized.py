"""A folder of quantised experts: one safetensors file each, and a manifest that says how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lumoe.errors import UserError
from lumoe.files import atomic_path, read_json, write_json
from lumoe.moe.affine import AffineMatrix, pack_nibbles, unpack_nibbles
from lumoe.moe.checkpoint import Checkpoint

MANIFEST = "manifest.json"
FORMAT = 1


def expert_path(folder: Path, layer: int, expert: int) -> Path:
    """File of one expert."""
    return folder / f"layer-{layer:02d}-expert-{expert:02d}.safetensors"


def save_expert(
    folder: Path, layer: int, expert: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write one expert's tensors, whole or not at all."""
    with atomic_path(expert_path(folder, layer, expert)) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, dict(metadata))


def affine_tensors(name: str, matrix: AffineMatrix) -> dict[str, torch.Tensor]:
    """Return the tensors in which a matrix is stored: codes (two a byte up to 4 bits), scales and zeros."""
    codes = pack_nibbles(matrix.codes) if matrix.bits <= 4 else matrix.codes
    return {f"{name}.codes": codes, f"{name}.scales": matrix.scales, f"{name}.zeros": matrix.zeros}


def codebook_tensors(
    name: str, codes: torch.Tensor, scales: torch.Tensor, values: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the tensors of a matrix whose 4-bit codes are looked up in `values [16]` and scaled group by group."""
    return {f"{name}.codes": pack_nibbles(codes), f"{name}.scales": scales, f"{name}.values": values}


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    """Say that the folder is complete, and how its experts were made."""
    write_json(folder / MANIFEST, {"format": FORMAT, **values})


class QuantizedExperts:
    """A finished folder, read expert by expert."""

    def __init__(self, folder: str | Path) -> None:
        """Read the manifest.

        Raises:
            UserError: there is none, or it is not one that this version reads.
        """
        self.folder = Path(folder)
        manifest = read_json(self.folder / MANIFEST)
        try:
            self.method = str(manifest["method"])
            self.bits, self.group_size = int(manifest["bits"]), int(manifest["group_size"])
            self.affine = manifest["layout"] == "affine"
            self.shape: dict[str, int] = manifest["shape"]
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.folder / MANIFEST}: not a manifest that this version reads ({error})") from None
        self._last: tuple[tuple[int, int], dict[str, torch.Tensor]] | None = None

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """Raise UserError unless these are experts of a model of the checkpoint's shape."""
        for name, value in self.shape.items():
            wanted = getattr(checkpoint.architecture, name)
            if wanted != value:
                raise UserError(f"{self.folder}: made for {name} {value}, but {checkpoint.folder} has {wanted}")

    def matrix(self, layer: int, expert: int, name: str) -> AffineMatrix:
        """Read `w1`, `w2` or `w3` of one expert."""
        tensors = self._load(layer, expert)
        codes = tensors[f"{name}.codes"]
        codes = unpack_nibbles(codes) if self.bits <= 4 else codes
        return AffineMatrix(codes, tensors[f"{name}.scales"], tensors[f"{name}.zeros"], self.bits)

    def dequantized(self, layer: int, expert: int, name: str) -> torch.Tensor:
        """Read one matrix and return the weights that it stands for, float32."""
        if self.affine:
            return self.matrix(layer, expert, name).dequantize()
        tensors = self._load(layer, expert)
        scales = tensors[f"{name}.scales"].float()
        looked_up = tensors[f"{name}.values"].float()[unpack_nibbles(tensors[f"{name}.codes"]).int()]
        return (looked_up.view(*scales.shape, -1) * scales.unsqueeze(-1)).view(looked_up.shape)

    def _load(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        if self._last is None or self._last[0] != (layer, expert):
            path = expert_path(self.folder, layer, expert)
            try:
                tensors = load_file(path)
            except FileNotFoundError:
                raise UserError(f"{path}: the quantised expert is missing; run `lumoe moe quantize` again") from None
            except Exception as error:  # safetensors has an error type of its own for each fault
                raise UserError(f"{path}: not a whole safetensors file ({error})") from None
            if not all(torch.isfinite(value).all() for name, value in tensors.items() if name.endswith("scales")):
                raise UserError(f"{path}: the scales hold NaN or infinite values")
            self._last = ((layer, expert), tensors)
        return self._last[1]

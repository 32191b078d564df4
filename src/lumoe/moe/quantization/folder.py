"""A folder of quantised experts: one safetensors file each, and a manifest that says how they were made.

Every file carries the SHA-256 of what it holds, so that an expert is verified whenever it is read: before the manifest
exists (a resumed quantisation) as well as after.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lumoe.errors import UserError
from lumoe.files import read_csv, read_sealed_json, write_sealed_json
from lumoe.moe.checkpoint.reads import READS
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.kernels.affine import AffineMatrix, looked_up, pack_nibbles, unpack_nibbles
from lumoe.sealed_tensors import load_tensors, save_tensors

TABLE = "experts.csv"
MANIFEST = "manifest.json"
FORMAT = 2


def expert_path(folder: Path, layer: int, expert: int) -> Path:
    """File of one expert."""
    return folder / f"layer-{layer:02d}-expert-{expert:02d}.safetensors"


def save_expert(
    folder: Path, layer: int, expert: int, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write one expert's tensors, whole or not at all."""
    save_tensors(expert_path(folder, layer, expert), tensors, metadata)


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
    write_sealed_json(folder / MANIFEST, {"format": FORMAT, **values})


class QuantizedExperts:
    """A finished folder, read expert by expert."""

    def __init__(self, folder: str | Path) -> None:
        """Read the manifest.

        Raises:
            UserError: there is none, or it is not one that this version reads.
        """
        self.folder = Path(folder)
        manifest = read_sealed_json(self.folder / MANIFEST)
        try:
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']}")
            self.method = str(manifest["method"])
            self.bits, self.group_size = int(manifest["bits"]), int(manifest["group_size"])
            self.affine = manifest["layout"] == "affine"
            self.key = str(manifest["key"])
            self.shape = {str(name): int(value) for name, value in manifest["shape"].items()}
            self._expected = self._expected_tensors()
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise UserError(
                f"{self.folder / MANIFEST}: not a manifest that this version reads ({error}); "
                "run `lumoe moe quantize` again"
            ) from None
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
        codes = unpack_nibbles(tensors[f"{name}.codes"])
        return looked_up(codes, tensors[f"{name}.scales"], tensors[f"{name}.values"])

    def tensors(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """Read one expert as it is stored: codes (two in a byte up to 4 bits), scales, and zeros or values."""
        return dict(self._load(layer, expert))

    @property
    def expert_bytes(self) -> list[int]:
        """Bytes of each of the tensors of one expert, as it is stored."""
        return [torch.Size(shape).numel() * dtype.itemsize for dtype, shape in self._expected.values()]

    def _load(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        if self._last is None or self._last[0] != (layer, expert):
            path = expert_path(self.folder, layer, expert)
            try:
                tensors, metadata = load_tensors(path)
            except FileNotFoundError:
                raise UserError(f"{path}: the quantised expert is missing; run `lumoe moe quantize` again") from None
            if metadata.get("key") != self.key:
                raise UserError(f"{path}: from another quantisation than {self.folder / MANIFEST}; quantise again")
            # Kernels take sizes from the manifest: what the file holds must agree before they see its bytes.
            found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
            if found != self._expected:
                raise UserError(f"{path}: its tensors are not those of {self.folder / MANIFEST}; quantise again")
            if not all(torch.isfinite(value).all() for name, value in tensors.items() if name.endswith("scales")):
                raise UserError(f"{path}: the scales hold NaN or infinite values")
            READS.add(weights=sum(value.nbytes for value in tensors.values()))
            self._last = ((layer, expert), tensors)
        return self._last[1]

    def _expected_tensors(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        hidden, wide = self.shape["hidden_size"], self.shape["intermediate_size"]
        expected: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, (rows, columns) in {"w1": (wide, hidden), "w2": (hidden, wide), "w3": (wide, hidden)}.items():
            scales = (torch.bfloat16, (rows, columns // self.group_size))
            packed = columns // 2 if self.bits <= 4 else columns
            expected[f"{name}.codes"] = (torch.uint8, (rows, packed))
            expected[f"{name}.scales"] = scales
            expected |= {f"{name}.zeros": scales} if self.affine else {f"{name}.values": (torch.float32, (16,))}
        return expected


def read_frequencies(
    folder: str | Path, shape: tuple[int, int] | None = None
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return how often a calibration token was routed to each expert, `[L, E]`, rows summing to k.

    Raises:
        UserError: the folder holds no finished quantisation, or one of another shape than the one given.
    """
    table = read_csv(Path(folder) / TABLE, ("layer", "expert", "frequency"))
    frequencies = table.pivot(index="layer", columns="expert", values="frequency").to_numpy(dtype=float)
    if shape is not None and frequencies.shape != shape:
        raise UserError(f"{folder}: experts of a model of shape {frequencies.shape}, this one has {shape}")
    return frequencies

"""A folder of quantised experts: one safetensors file each, and a manifest that says how they were made.

Every file carries the SHA-256 of what it holds, so that an expert is verified whenever it is read: before the manifest
exists (a resumed quantisation) as well as after. Every file and the manifest carry a key, too: the recipe, the
calibration tokens and the identity of the weights that the experts were made of.
"""

from __future__ import annotations

import json
import logging
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
from lumoe.sealed_tensors import load_tensors, read_metadata, save_tensors

TABLE = "experts.csv"
MANIFEST = "manifest.json"
FORMAT = 3
# Folders of format 2 do not say of which weights they are. They took hours to make and their experts are the same, so
# they are read, with a warning.
_UNNAMED = 2
_EXPERTS = "layer-*-expert-*.safetensors"
log = logging.getLogger(__name__)


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
    """Say that the folder is complete, how its experts were made and of which weights (`Checkpoint.identity`)."""
    write_sealed_json(folder / MANIFEST, {"format": FORMAT, **values})


def make_room(folder: Path, key: str, force: bool) -> None:
    """Make sure that `folder` holds nothing but experts of `key`, for there may be hours of work in it.

    With `force`, experts of another key are removed, the manifest first: what is left never reads as finished.

    Raises:
        UserError: there are experts of another key and they are not to be removed, or the folder is of something else.
    """
    manifest, found = folder / MANIFEST, sorted(folder.glob(_EXPERTS))
    made: dict[Path, str] = {}
    if manifest.exists():
        try:
            made[manifest] = str(read_sealed_json(manifest)["key"])
        except (UserError, KeyError):
            if not found:  # a model has a manifest of that name, too
                raise UserError(
                    f"{folder}: there is a manifest.json, but not of quantised experts; choose another --output"
                ) from None
    for path in found:
        try:
            made[path] = str(read_metadata(path).get("key"))
        except UserError as error:
            log.warning("%s", error)
    others = {path: other for path, other in made.items() if other != key}
    if not others:
        return
    if not force:
        held = "finished quantisation" if manifest in made else f"quantisation of {len(found)} experts, not finished,"
        raise UserError(
            f"{folder}: holds a {held} made another way ({_differences(next(iter(others.values())), key)}); "
            "choose another --output, or replace it with --force"
        )
    for path in (manifest, folder / TABLE, *(path for path in others if path != manifest)):
        path.unlink(missing_ok=True)


def _differences(made: str, wanted: str) -> str:
    """Say what is different between two keys, the older first."""
    old, new = _parsed(made), _parsed(wanted)
    found = [f"{name} {old[name]}, not {new[name]}" for name in _NAMED if name in old and old[name] != new[name]]
    found += [text for name, text in _UNSAID.items() if name in old and old[name] != new.get(name)]
    return "; ".join(found) or "by an earlier version, which did not record of which weights"


# Parts of a key that a user has given, and what is said of those that are hashes.
_NAMED = ("method", "bits", "group_size", "least_tokens")
_UNSAID = {
    "calibration": "other calibration tokens: of another corpus, number, length or seed",
    "weights": "of other weights than the model's",
    "code": "with other code of the quantiser",
}


def _parsed(key: str) -> dict[str, Any]:
    try:
        value = json.loads(key)
        if isinstance(value, dict):
            return value
        recipe, calibration, _ = value
        return {**recipe, "calibration": calibration}
    except (ValueError, TypeError):
        return {}


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
            if manifest["format"] not in (FORMAT, _UNNAMED):
                raise ValueError(f"format {manifest['format']}")
            self.method = str(manifest["method"])
            self.bits, self.group_size = int(manifest["bits"]), int(manifest["group_size"])
            self.affine = manifest["layout"] == "affine"
            self.key = str(manifest["key"])
            self.weights = None if manifest["format"] == _UNNAMED else str(manifest["weights"])
            self.shape = {str(name): int(value) for name, value in manifest["shape"].items()}
            self._expected = self._expected_tensors()
        except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise UserError(
                f"{self.folder / MANIFEST}: not a manifest that this version reads ({error}); "
                "run `lumoe moe quantize` again"
            ) from None
        self._last: tuple[tuple[int, int], dict[str, torch.Tensor]] | None = None

    def check_fits(self, checkpoint: Checkpoint) -> None:
        """Raise UserError unless these experts were made of the checkpoint's weights."""
        for name, value in self.shape.items():
            wanted = getattr(checkpoint.architecture, name)
            if wanted != value:
                raise UserError(f"{self.folder}: made for {name} {value}, but {checkpoint.folder} has {wanted}")
        if self.weights is None:
            log.warning(
                "%s: made by an earlier version, so whether of the weights of %s is not known; "
                "`lumoe moe quantize --force` makes them anew and records it",
                *(self.folder, checkpoint.folder),
            )
        elif self.weights != checkpoint.identity:
            raise UserError(
                f"{self.folder}: its experts were made of other weights than those of {checkpoint.folder}; "
                "quantise this model with another --output, or with --force to replace them"
            )

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
    QuantizedExperts(folder)
    table = read_csv(Path(folder) / TABLE, ("layer", "expert", "frequency"))
    frequencies = table.pivot(index="layer", columns="expert", values="frequency").to_numpy(dtype=float)
    if shape is not None and frequencies.shape != shape:
        raise UserError(f"{folder}: experts of a model of shape {frequencies.shape}, this one has {shape}")
    return frequencies

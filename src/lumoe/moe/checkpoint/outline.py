"""What is known of a model before its weights are there: of the headers of its files, or of its configuration alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lumoe.errors import UserError, about
from lumoe.files import unique_keys
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.read import parse_config, read_shape
from lumoe.moe.checkpoint.formats import Format
from lumoe.moe.checkpoint.gguf_file import models_among, shards_of, unpack_weights
from lumoe.moe.checkpoint.headers import Files, LocalFiles, copy_headers
from lumoe.moe.checkpoint.hub import HubFiles, HubName
from lumoe.moe.checkpoint.part_sizes import Held, held, of_config, of_files
from lumoe.moe.checkpoint.safetensors import INDEX, SINGLE
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.planning.inputs import HUB
from lumoe.moe.planning.parts import Parts, amount
from lumoe.moe.planning.plan import FULL_BITS, Memory

CONFIG = "config.json"
_MOST_NAMED = 12  # files that a message names


@dataclass(frozen=True)
class Outline:
    """A model's architecture and the sizes of its parts.

    Attributes:
        held: what it takes in memory, where that is less than 16 bits a weight.
    """

    architecture: Architecture
    parts: Parts
    held: Held | None = None

    def memory(self, bits: int, group_size: int) -> Memory:
        """Return what the parts take in memory with experts as the files have them, or quantised to `bits`."""
        memory = self.architecture.memory([bits], group_size)
        if self.held is None:
            return memory
        sizes = {**memory.expert, FULL_BITS: self.held.expert}
        return replace(memory, expert=sizes, non_expert=self.held.outside, stored=self.held.codes)


def read_outline(model: str) -> Outline:
    """Read a model folder, a GGUF file, a `config.json`, a shipped shape by its name, or `hub:ORG/NAME`.

    Of a folder the headers of its weights are read if they are all there, whether or not weights follow them; otherwise
    its configuration alone.

    Raises:
        UserError: there is none, its family is not known, or a file is damaged or of another model.
    """
    if model.startswith(HUB):
        return _of_hub(HubName.parse(model))
    path = Path(model)
    if path.is_dir():
        return outline_of(LocalFiles(path))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        return outline_of(LocalFiles(path.parent), path.name)
    if path.suffix == ".json":
        files = LocalFiles(path.parent)
        return _computed(files, path, _object(files, path.name))
    architecture = read_shape(model)
    return Outline(architecture, of_config(architecture, {}, "computed from the shipped shape at 16 bits a weight"))


def _of_hub(name: HubName) -> Outline:
    files = HubFiles(name)
    found = outline_of(files, name.file)
    source = f"{found.parts.source}, commit {files.commit[:12]}; {amount(files.read_bytes)} read"
    return replace(found, parts=replace(found.parts, source=source))


def outline_of(files: Files, gguf: str | None = None) -> Outline:
    """Return the outline of a model's files: of safetensors, else of GGUF, else of the configuration alone.

    Args:
        gguf: the GGUF file that is meant, where there may be several.

    Raises:
        UserError: a file is missing, damaged or of another model, or it is not clear which one is meant.
    """
    names = set(files.names())
    if gguf is None and CONFIG in names:
        values = _object(files, CONFIG)
        shards = _shards(files, names)
        if shards and names.issuperset(shards):
            return _of_safetensors(files, shards, INDEX in names)
        if not any(name.endswith(".gguf") for name in names):
            return _computed(files, Path(files.where) / CONFIG, values)
    return _of_gguf(files, gguf_shards(names, gguf, files.where))


def _shards(files: Files, names: set[str]) -> list[str]:
    if INDEX not in names:
        return [SINGLE] if SINGLE in names else []
    placed = _object(files, INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(shard, str) for shard in placed.values()):
        raise UserError(f"{files.where}/{INDEX}: 'weight_map' (tensor name -> file name) is missing")
    return sorted(set(placed.values()))


def gguf_shards(names: set[str], wanted: str | None, where: str) -> list[str]:
    """Return the files of one model among `names`.

    Args:
        wanted: a file's name, or what only its name has, such as Q4_K_M; None where there is one model alone.

    Raises:
        UserError: none or several are meant, or a shard is missing.
    """
    models = sorted(name for name in names if name.endswith(".gguf") and "mmproj" not in name)
    if wanted in models:
        found = [wanted]
    else:
        models = models_among(names)
        found = [name for name in models if wanted is None or wanted.casefold() in name.casefold()]
    if not models:
        raise UserError(f"{where}: neither {CONFIG} nor a GGUF file is there")
    if len(found) != 1:
        choice = found or models
        listed = ", ".join(choice[:_MOST_NAMED]) + (" and more" if len(choice) > _MOST_NAMED else "")
        meant = f" are named like '{wanted}'" if wanted else ""
        raise UserError(f"{where}: {len(found) or 'no'} GGUF files{meant}; name one: {listed}")
    every = shards_of(str(found[0]))
    for name in every:
        if name not in names:
            raise UserError(f"{where}: {name} is missing; it is one of the {len(every)} files of {found[0]}")
    return every


def _of_safetensors(files: Files, shards: Sequence[str], indexed: bool) -> Outline:
    with _stand_in(files) as folder:
        for name in (CONFIG, *([INDEX] if indexed else ())):
            (folder / name).write_bytes(files.read(name, 0))
        whole = copy_headers(files, shards, folder)
        return _of_headers(folder, f"{len(shards)} safetensors file{'s' * (len(shards) > 1)}", whole)


def _of_gguf(files: Files, shards: Sequence[str]) -> Outline:
    with _stand_in(files) as folder:
        whole = copy_headers(files, shards, folder)
        unpacked = folder / "model"
        unpack_weights([folder / Path(name).name for name in shards], unpacked)
        named = shards[0] if len(shards) == 1 else f"{len(shards)} GGUF files"
        return _of_headers(unpacked, named, whole)


def _of_headers(folder: Path, named: str, whole: bool) -> Outline:
    checkpoint = Checkpoint(folder)
    source = f"read from the headers of {named}" + ("" if whole else ", which end before their weights do")
    return Outline(checkpoint.architecture, of_files(checkpoint, source), held(checkpoint))


@contextmanager
def _stand_in(files: Files) -> Iterator[Path]:
    """Yield an empty folder; messages about files in it name the model instead."""
    with TemporaryDirectory(prefix="lumoe-") as name:
        try:
            yield Path(name)
        except UserError as error:
            raise UserError(str(error).replace(name, files.where)) from None


def _computed(files: Files, path: Path, values: dict[str, Any]) -> Outline:
    architecture = parse_config(path, values)
    settings = values.get("quantization_config")
    source = "computed from config.json, 16 bits a weight assumed"
    if settings:
        source = f"computed from config.json, whose quantization_config says {Format(path, settings).method}"
    if path.name == CONFIG and INDEX in files.names():
        about_files = _object(files, INDEX).get("metadata")
        total = about_files.get("total_size") if isinstance(about_files, dict) else None
        if type(total) is int or (type(total) is float and total.is_integer()):
            source += f"; {INDEX} says {amount(int(total))} in all"
    with about(path):
        return Outline(architecture, of_config(architecture, values, source))


def _object(files: Files, name: str) -> dict[str, Any]:
    text = files.read(name, 0)
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{files.where}/{name}: not JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{files.where}/{name}: not a JSON object")
    return value

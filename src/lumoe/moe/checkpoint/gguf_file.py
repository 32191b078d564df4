"""Models in GGUF files (llama.cpp's): a folder that stands for one, and its tensors, read from the files themselves.

A file is unpacked once: its metadata become the `config.json` and the tokenizer of a folder in the user's cache, beside
a list of where each tensor lies. Whatever opens a model opens that folder; weights are never copied.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumoe.errors import UserError
from lumoe.files import atomic_path, read_json, write_json
from lumoe.moe.checkpoint.gguf_metadata import Metadata, config_of
from lumoe.moe.checkpoint.gguf_tokenizer import tokenizer_files
from lumoe.moe.checkpoint.safetensors import DTYPES, Entry
from lumoe.moe.kernels.blocks import FORMATS
from lumoe.moe.kernels.codes import expanded

LISTING = "gguf.json"
_FORMAT = 1
# Of llama.cpp's formats, those that are read here.
KINDS = (*DTYPES, *FORMATS)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Blocks:
    """A tensor in one of llama.cpp's formats: blocks of codes along the inputs.

    Attributes:
        kind: of the format, by its name there.
    """

    path: Path
    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def part(self, index: int, of: int, shape: tuple[int, ...]) -> Blocks:
        """Return one of `of` equal pieces that follow one another, as a tensor of `shape`."""
        size = self.nbytes // of
        return Blocks(self.path, self.name, self.kind, shape, self.offset + index * size, size)

    @property
    def direct(self) -> Entry:
        """Where the bytes of each row lie."""
        rows = math.prod(self.shape[:-1])
        return Entry(self.path, self.name, torch.uint8, (rows, self.nbytes // rows), self.offset, self.nbytes)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What of the file it is made of."""
        return (self.direct,)

    def codes(self) -> torch.Tensor:
        """Return the bytes of each row, uint8 `[rows, bytes]`.

        Raises:
            UserError: the file ends too early.
        """
        return self.direct.read()

    def read(self) -> torch.Tensor:
        """Return the values, float32.

        Raises:
            UserError: the file ends too early.
        """
        return expanded(self.codes(), self.kind).view(self.shape)


def model_folder(path: str | Path) -> Path:
    """Return the folder of a model: `path` itself, or for a GGUF file one in the cache that stands for it.

    A folder without `config.json` that holds one model in GGUF counts as that file. Of a model in several files any may
    be named.

    Raises:
        UserError: the file is no GGUF, is damaged, or is of an architecture that is not known.
    """
    found = Path(path)
    if found.is_dir():
        if (found / "config.json").is_file():
            return found
        whole = models_among(file.name for file in found.glob("*.gguf"))
        if len(whole) != 1:
            if whole:
                raise UserError(f"{found}: several GGUF files; name one: {', '.join(whole)}")
            return found
        found /= whole[0]
    if found.suffix != ".gguf":
        return found
    if not found.is_file():
        raise UserError(f"{found}: no such file")
    files = _shards(found.resolve())
    beside = [file for name in _BESIDE if (file := found.resolve().parent / name).is_file()]
    state = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in (*files, *beside)]
    key = hashlib.sha256(repr((_FORMAT, state)).encode()).hexdigest()[:16]
    folder = _cache() / "gguf" / key / (_SHARD.sub(r"\1", found.name).removesuffix(".gguf") or "model")
    if not (folder / LISTING).is_file():
        _unpack(files, folder)
    return folder


# A tokenizer beside the file is taken in place of the one within.
_BESIDE = ("tokenizer.json", "tokenizer_config.json")


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "lumoe"


def models_among(names: Iterable[str]) -> list[str]:
    """Return the files that models begin with: no later shards, and nothing that goes with a model of language."""
    models = sorted(name for name in names if name.endswith(".gguf") and "mmproj" not in name)
    return [name for name in models if not (shard := _SHARD.fullmatch(name)) or int(shard[2]) == 1]


def shards_of(name: str) -> list[str]:
    """Return the names of all files of the model that the file `name` is one of."""
    shard = _SHARD.fullmatch(name)
    if shard is None:
        return [name]
    return [f"{shard[1]}-{index:05}-of-{shard[3]}.gguf" for index in range(1, int(shard[3]) + 1)]


def _shards(path: Path) -> list[Path]:
    files = [path.with_name(name) for name in shards_of(path.name)]
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: missing; it is one of the {len(files)} files of {path.name}")
    return files


def _unpack(files: list[Path], folder: Path) -> None:
    values, listed, config = _described(files)
    beside = [files[0].parent / name for name in _BESIDE]
    folder.mkdir(parents=True, exist_ok=True)
    if all(file.is_file() for file in beside):
        for file in beside:
            with atomic_path(folder / file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
    elif values.get("tokenizer.ggml.tokens"):
        text, settings = tokenizer_files(str(files[0]), values)
        with atomic_path(folder / "tokenizer.json") as temporary:
            temporary.write_text(text, encoding="utf-8")
        write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "config.json", config)
    write_json(folder / LISTING, listed)


def unpack_weights(files: list[Path], folder: Path) -> None:
    """Make `folder` stand for the model in `files`, without its tokenizer.

    Raises:
        UserError: a file is no GGUF, is damaged, or is of an architecture that is not known.
    """
    _, listed, config = _described(files)
    write_json(folder / "config.json", config)
    write_json(folder / LISTING, listed)


def _described(files: list[Path]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the metadata of a model's files, where its tensors lie, and its configuration."""
    values: dict[str, Any] = {}
    listed: dict[str, Any] = {}
    for file in files:
        metadata, tensors = _read(file)
        values = {**metadata, **values}
        listed |= tensors
    shapes = {name: tuple(place["shape"]) for name, place in listed.items()}
    if "token_embd.weight" not in shapes:
        raise UserError(f"{files[0]}: the tensor 'token_embd.weight' is missing")
    return values, listed, config_of(Metadata(str(files[0]), values, shapes))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metadata of one file, and where its tensors lie."""
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        size = path.stat().st_size
        found: dict[str, Any] = {}
        for tensor in reader.tensors:
            kind = tensor.tensor_type.name
            if kind not in KINDS:
                raise UserError(
                    f"{path}: the tensor '{tensor.name}' is in the format {kind}, which is not supported; "
                    f"known: {', '.join(KINDS)}"
                )
            offset, nbytes = int(tensor.data_offset), int(tensor.n_bytes)
            if offset + nbytes > size:
                raise UserError(f"{path}: the tensor '{tensor.name}' is cut off; fetch the file again")
            found[tensor.name] = {
                "file": str(path), "kind": kind, "shape": [int(n) for n in tensor.shape[::-1]], "offset": offset,
                "nbytes": nbytes,
            }  # fmt: skip
    except UserError:
        raise
    # The package raises whatever its reading of damaged bytes runs into.
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole GGUF file ({text}); fetch the file again") from None
    return values, found


def read_listing(folder: Path) -> dict[str, Entry | Blocks] | None:
    """Return where each tensor of an unpacked GGUF file lies; None for folders of another kind.

    Raises:
        UserError: the list is damaged, or a file is not there any more.
    """
    path = folder / LISTING
    if not path.is_file():
        return None
    found: dict[str, Entry | Blocks] = {}
    try:
        for name, place in read_json(path).items():
            file, kind, shape = Path(place["file"]), place["kind"], tuple(place["shape"])
            at = place["offset"], place["nbytes"]
            if kind in DTYPES:
                found[name] = Entry(file, name, DTYPES[kind], shape, *at)
            else:
                found[name] = Blocks(file, name, kind, shape, *at)
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; remove the folder, and the file is unpacked again") from None
    for file in {entry.path for entry in found.values()}:
        if not file.is_file():
            raise UserError(f"{file}: no such file, but {path} says that weights are there")
    return found

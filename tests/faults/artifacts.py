"""What the package reads from disk, each with a reader and with what may come of a damaged copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_model import TEXTS, make_model

from lumoe.errors import about
from lumoe.files import read_csv, read_json, read_yaml, write_json
from lumoe.moe.checkpoint.manifest import write_manifest
from lumoe.moe.checkpoint.tokenizer import encode, load_tokenizer
from lumoe.moe.checkpoint.weights import Checkpoint, expected_shapes
from lumoe.moe.corpora.corpus import SPLITS, read_text, write_corpus
from lumoe.moe.corpora.docstrings import Document
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.budget_traces import read_trace
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize
from lumoe.moe.training.state import load_state, save_state
from lumoe.photonics.devices import load_devices
from lumoe.photonics.studies.uncertainty import read_studies
from lumoe.pipeline.claims import read_claims
from lumoe.pipeline.settings import validate

DATA = Path(__file__).parents[2] / "data"
TOKENS = torch.arange(48).view(3, 16)


@dataclass(frozen=True)
class Artifact:
    """A folder, the files in it that are damaged, and how it is read.

    Attributes:
        sealed: the files carry checksums: a damaged one is refused or gives the very same result. Otherwise another
            result is allowed as well (a digit of a text file may always have been meant), but nothing else.
        header: only the header of the safetensors file is damaged.
    """

    name: str
    make: Callable[[Path], object]
    read: Callable[[Path], Any]
    files: str
    sealed: bool = False
    header: bool = False


def recorded_model(folder: Path) -> None:
    make_model(folder)
    write_manifest(folder)


def model_and_tokens(folder: Path) -> Any:
    checkpoint = Checkpoint(folder)
    tensors = {name: checkpoint.tensor(name) for name in expected_shapes(checkpoint.architecture)}
    return digest(tensors), checkpoint.architecture, [encode(load_tokenizer(folder), text) for text in TEXTS]


def digest(tensors: dict[str, torch.Tensor]) -> list[tuple[str, bytes]]:
    return [
        (name, value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        for name, value in sorted(tensors.items())
    ]


def weights(folder: Path) -> Any:
    checkpoint = Checkpoint(folder)
    return digest({name: checkpoint.tensor(name) for name in expected_shapes(checkpoint.architecture)})


def logits(folder: Path) -> Any:
    found = Engine.load(folder, dtype=torch.float32).logits(TOKENS[:1, :8])
    assert found.shape[:2] == (1, 8)
    return found.numpy().tobytes()


def tokens(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    return [(encode(tokenizer, text), tokenizer.decode(encode(tokenizer, text))) for text in TEXTS]


def quantized(folder: Path, method: str) -> None:
    make_model(folder / "model")
    quantize(Checkpoint(folder / "model"), TOKENS, folder / "store", Recipe(method, 4, 32))  # type: ignore[arg-type]


def quantized_weights(folder: Path) -> Any:
    store = QuantizedExperts(folder / "store")
    store.check_fits(Checkpoint(folder / "model"))
    return [store.dequantized(layer, expert, name).numpy().tobytes()
            for layer in range(2) for expert in range(3) for name in ("w1", "w2", "w3")]  # fmt: skip


def corpus(folder: Path) -> None:
    texts = [Document(f"{text} {number}", "here") for number, text in enumerate(TEXTS * 5)]
    write_corpus(folder, dict.fromkeys(SPLITS, texts), "\n\n", {"source": "made up"})


def training(folder: Path) -> None:
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    folder.mkdir()
    save_state(folder / "state", model, [optimizer], {"step": 1})


def training_state(folder: Path) -> Any:
    model, optimizers, record = load_state(folder / "state")
    moments = {f"{key}.{name}": value for key, part in optimizers[0]["state"].items() for name, value in part.items()}
    return digest(model), digest(moments), optimizers[0]["param_groups"], record


def copy_of(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        for name in names:
            shutil.copy(DATA / name, folder / Path(name).name)

    return make


def plan(folder: Path) -> None:
    folder.mkdir()
    write_json(folder / "plan.json", Plan.uniform(2, 3, 4).to_dict())


def read_plan(folder: Path) -> Any:
    path = folder / "plan.json"
    with about(path):
        return json.dumps(Plan.from_dict(read_json(path)).to_dict())


def settings(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(DATA.parent / "config" / "default.yaml", folder / "settings.yaml")


def read_settings(folder: Path) -> Any:
    path = folder / "settings.yaml"
    with about(path):
        return validate(read_yaml(path) or {})


ARTIFACTS = (
    Artifact("recorded model", recorded_model, model_and_tokens, "*", sealed=True),
    Artifact("quantised store, affine", lambda f: quantized(f, "rtn"), quantized_weights, "store/[lm]*", sealed=True),
    Artifact("quantised store, nf4", lambda f: quantized(f, "nf4"), quantized_weights, "store/[lm]*", sealed=True),
    Artifact("corpus", corpus, lambda f: [read_text(f, name) for name in SPLITS], "*", sealed=True),
    Artifact("training state", training, training_state, "*", sealed=True),
    # A header that is read at all gives every tensor its own bytes.
    Artifact("header of weights", lambda f: make_model(f), weights, "*.safetensors", sealed=True, header=True),
    Artifact("index of shards", lambda f: make_model(f, 3), weights, "*.index.json", sealed=True),
    Artifact("weights of others", lambda f: make_model(f), logits, "*.safetensors"),
    Artifact("configuration of others", lambda f: make_model(f), logits, "config.json"),
    Artifact("tokenizer of others", lambda f: make_model(f), tokens, "[ts]*.json"),
    Artifact("budget trace", copy_of("traces/steps.csv"), lambda f: read_trace(f / "steps.csv"), "*"),
    Artifact("table", copy_of("published.csv"), lambda f: read_csv(f / "published.csv", ("item",)), "*"),
    Artifact("hardware", copy_of("hardware/a100-80gb.yaml"), lambda f: read_hardware(f / "a100-80gb.yaml"), "*"),
    Artifact("device set", copy_of("devices/pcnna.yaml"), lambda f: load_devices(str(f / "pcnna.yaml")), "*"),
    Artifact("claims", copy_of("claims.yaml"), lambda f: read_claims(f / "claims.yaml"), "*"),
    Artifact("studies", copy_of("uncertainty.yaml"), lambda f: read_studies(f / "uncertainty.yaml"), "*"),
    Artifact("settings", settings, read_settings, "*"),
    Artifact("plan", plan, read_plan, "*"),
)  # fmt: skip

"""Commands on a GPU: the engine of a device, its memory and its tables. The processor stands in for the GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner, Result

from lumoe.cli.moe import app
from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.corpora.corpus import write_corpus
from lumoe.moe.corpora.docstrings import Document
from lumoe.moe.corpora.sequences import draw_sequences
from lumoe.moe.engine import device
from lumoe.moe.engine.device import KEPT_FREE
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.throughput import that_fit
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.planning.hardware import read_hardware
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.quantize import Recipe, quantize

ROOT = Path(__file__).parents[3]
MINI = ROOT / "data/models/mini-mixtral"
SHAPE = (3, 4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the processor be every device that is asked for; return those that were."""
    asked: list[str] = []

    def place(name: str) -> torch.device:
        asked.append(name)
        return torch.device("cpu")

    monkeypatch.setattr(device, "device_of", place)
    return asked


def holding(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let the device have `free` bytes for experts and swap buffers."""
    monkeypatch.setattr(device, "free_bytes", lambda place: free + KEPT_FREE)


@pytest.mark.usefixtures("gpu")
def test_what_a_device_cannot_hold_stays_a_miss(
    model_bf16: Path, quantized: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = Engine.load(model_bf16, quantized[4], device="cuda")
    assert (unlimited.model.most_bytes, unlimited.store.resident().all()) == (None, True)
    small, large = (unlimited.store.source.nbytes(bits) for bits in (4, 16))
    holding(monkeypatch, 5 * large + large // 2)
    engine = Engine.load(model_bf16, quantized[4], device="cuda")
    assert isinstance(engine.decoder, StaticDecoder)
    assert engine.store.resident().sum() == 3
    assert engine.model.most_bytes == engine.decoder.nbytes + 5 * large + large // 2
    ids = [5, 9, 2, 7]
    assert torch.equal(engine.logits(ids), unlimited.logits(ids))
    # Small ones first, as many as there is room for beside two buffers for large ones.
    mixed = Plan(np.array([4] * 6 + [16] * 6).reshape(SHAPE), np.ones(SHAPE, dtype=bool))
    engine.reconfigure(mixed)
    expected = 6 + (3 * large + large // 2 - 6 * small) // large
    assert engine.store.resident().sum() == expected
    assert engine.store.resident()[mixed.bits == 4].all()
    assert that_fit(engine, [mixed, engine.plan]) == [engine.plan]
    with pytest.raises(UserError, match="none of 1 configurations fits"):
        that_fit(engine, [mixed])


@pytest.mark.usefixtures("gpu")
def test_a_budget_beyond_a_devices_memory_is_refused(model_bf16: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    holding(monkeypatch, 1 << 20)
    bare = Plan.uniform(*SHAPE, resident=False)
    engine = Engine.load(model_bf16, plan=bare, device="cuda", beside_bytes=1 << 19)
    most = engine.decoder.nbytes + (1 << 19)
    assert engine.model.most_bytes == most
    engine.reconfigure(bare, most)
    with pytest.raises(UserError, match=f"a budget of {most + 1} bytes exceeds the {most} that cpu has for weights"):
        engine.reconfigure(bare, most + 1)
    with pytest.raises(UserError, match="exceeds"):
        Engine.load(model_bf16, plan=bare, budget_bytes=1 << 40, device="cuda", beside_bytes=1 << 19)


def test_the_processor_has_its_own_engine(model_bf16: Path, gpu: list[str]) -> None:
    engine = Engine.load(model_bf16, device="cpu")
    assert (type(engine.decoder), engine.model.most_bytes, gpu) == (Decoder, None, [])
    assert that_fit(engine, [engine.plan]) == [engine.plan]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "docs"
    paragraphs = (ROOT / "docs/moe.md").read_text(encoding="utf-8").split("\n\n")
    documents = [Document(text, "docs/moe.md") for text in paragraphs]
    splits = dict.fromkeys(("train", "validation", "test"), documents)
    write_corpus(folder, splits, "\n\n", {})
    return folder


@pytest.fixture(scope="module")
def rounded(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rounded")
    ids = draw_sequences(MINI, [corpus], 128, 32, 0)
    quantize(Checkpoint(MINI), ids, folder, Recipe("rtn", 4, 64))
    return folder


def lumoe(*words: object) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_windows_are_scored_on_either_device(corpus: Path, rounded: Path, gpu: list[str], tmp_path: Path) -> None:
    words = ["perplexity", "--model", MINI, "--quantized", rounded, "--corpus", corpus, "--count", 32]
    words += ["--window", 32, "--windows", 4, "--activations", "bfloat16"]
    tables = {}
    for name in ("cpu", "cuda:1"):
        lumoe(*words, "--device", name, "--output", tmp_path / f"{name}.csv")
        tables[name] = read_csv(tmp_path / f"{name}.csv")
    assert gpu == ["cuda:1"]
    one, other = tables.values()
    assert len(one) == 8  # none and all of the experts quantised
    pd.testing.assert_frame_equal(one.drop(columns="nll"), other.drop(columns="nll"))
    # Kernels of their own round differently: a few hundredths of a nat over the 32 tokens of a window.
    assert np.abs(one["nll"] - other["nll"]).max() < 0.01 * one["nll"].min()


@pytest.mark.usefixtures("gpu")
def test_sensitivities_are_those_of_the_precisions_a_device_has(corpus: Path, rounded: Path, tmp_path: Path) -> None:
    words = ["sensitivity", "--model", MINI, "--quantized", rounded, "--corpus", corpus, "--window", 16]
    words += ["--windows", 1, "--activations", "bfloat16", "--device", "cuda", "--output", tmp_path / "costs.csv"]
    lumoe(*words)
    table = read_csv(tmp_path / "costs.csv")
    assert set(table["bits"]) == {4}
    assert len(table) == 32
    assert (table["divergence"] >= -1e-6).all()


@pytest.mark.usefixtures("gpu")
def test_speeds_of_what_fits_a_device(
    corpus: Path, rounded: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = Engine.load(MINI, rounded, device="cuda").memory.expert
    # All at 4 bits fit, and half of those at 16; all at 16 bits do not.
    holding(monkeypatch, 22 * sizes[16])
    model = ["--model", MINI, "--quantized", rounded, "--device", "cuda", "--threads", 1]
    profile = tmp_path / "machine.json"
    lumoe("calibrate", *model, "--seconds", 0.01, "--output", profile)
    assert set(read_hardware(str(profile)).expert) == {4, 16}
    words = ["throughput", *model, "--hardware", profile, "--corpus", corpus, "--repeats", 1]
    words += ["--prompt-tokens", 4, "--new-tokens", 3, "--output", tmp_path / "throughput.csv"]
    words += ["--count", 0, "--count", 32, "--resident", 0.5, "--resident", 1.0]
    result = lumoe(*words)
    assert "1 of 4 configurations do not fit the device" in result.stderr
    table = read_csv(tmp_path / "throughput.csv")
    found = table[["quantized_experts", "resident_experts"]].to_numpy().tolist()
    assert found == [[0, 16], [32, 16], [32, 32]]
    # Misses of a prefill and two steps with half of the experts, and none with all.
    assert (table["misses"] > 0).tolist() == [True, True, False]
    result = lumoe("batching", *model, "--corpus", corpus, "--batch", 2, "--repeats", 1, "--prompt-tokens", 16,
                   "--new-tokens", 2, "--output", tmp_path / "batching.csv")  # fmt: skip
    assert "not all experts at 16 bits fit the device" in result.stderr
    assert read_csv(tmp_path / "batching.csv")["quantized_experts"].tolist() == [32]


def test_a_text_goes_on_alike_on_either_device(gpu: list[str]) -> None:
    words = ["generate", "--model", MINI, "--new-tokens", 8, "--dtype", "float32", "Return the"]
    one, other = (lumoe(*words, "--device", device).stdout for device in ("cpu", "cuda"))
    assert one == other
    assert one.startswith("Return the ")
    assert gpu == ["cuda"]

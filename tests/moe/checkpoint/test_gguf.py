"""GGUF files against llama.cpp and against the checkpoints that they were made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import NAMES, write
from safetensors.torch import load_file
from tiny_families import MODELS, VOCABULARY, checkpoint, make
from typer.testing import CliRunner

from lumoe.cli.moe import app
from lumoe.errors import UserError
from lumoe.moe.checkpoint.chat_template import chat_tokenizer
from lumoe.moe.checkpoint.gguf_file import Blocks, model_folder
from lumoe.moe.checkpoint.stored import Coded
from lumoe.moe.checkpoint.tokenize import tokenize
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import open_model
from lumoe.moe.kernels.blocks import FORMATS
from lumoe.moe.planning.plan import Plan

REFERENCES: dict[str, Any] = json.loads(Path(__file__).with_name("llama_cpp.json").read_text())
# What GGUF has no words for: windows of dots1, sparsemixer's threshold, llama3's and dynamic scaling.
LEFT_OUT = {"dots1", "phimoe", "phimoe-longrope", "qwen2_moe-llama3", "qwen3_moe-dynamic"}
FAMILIES = sorted(name for name, (kind, _) in MODELS.items() if name not in LEFT_OUT and kind in NAMES)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_the_logits_of_its_checkpoint(name: str, tmp_path: Path) -> None:
    make(name, tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "model.gguf")
    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))
    expected = Engine.load(tmp_path / "model", dtype=torch.float32).logits(ids)
    # Where a tensor lies in its file decides how its sums are begun.
    torch.testing.assert_close(Engine.load(path, dtype=torch.float32).logits(ids), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["minimax_m2", "qwen3_5_moe_text", "deepseek_v3"])
def test_a_file_gives_the_logits_of_a_newer_transformers(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[1] / "references" / name
    expected = load_file(folder / "expected.safetensors")
    found = Engine.load(write(folder, tmp_path / "model.gguf"), dtype=torch.float32).logits(expected["ids"])
    torch.testing.assert_close(found, expected["logits"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", sorted(REFERENCES["models"]))
def test_log_probabilities_are_those_of_llama_cpp(name: str, tmp_path: Path) -> None:
    """llama.cpp's products round to 16 bits here and there, which now and then chooses another expert."""
    engine = Engine.load(write(checkpoint(name, tmp_path / "model"), tmp_path / "model.gguf"), dtype=torch.float32)
    near = []
    for ids, expected in zip(REFERENCES["prompts"], REFERENCES["models"][name], strict=True):
        found = engine.logits([ids])[0, -1].log_softmax(-1)
        assert len(expected) == engine.decoder.architecture.vocab_size
        near.append(max(abs(found[int(token)].item() - value) for token, value in expected.items()) < 0.1)
    assert sum(near) >= len(near) - 1


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "granitemoeshared"])
def test_codes_are_computed_from_as_they_are(name: str, kind: str, tmp_path: Path) -> None:
    """In bfloat16: memory of the codes, logits of the decoded weights, and the same whatever is resident."""
    wide = "moe_intermediate_size" if name == "qwen3_moe" else "intermediate_size"
    make(name, tmp_path / "model", hidden_size=128, **{wide: 64})
    path = write(tmp_path / "model", tmp_path / "model.gguf", kind)
    ids = torch.randint(3, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))
    exact, engine = Engine.load(path, dtype=torch.float32), Engine.load(path)
    source, a = engine.model.source, exact.decoder.architecture
    assert (source.stored_as, source.kernel(16), source.precisions) == (kind, "codes", (16,))
    bits = 8 * FORMATS[kind].nbytes / FORMATS[kind].weights
    # Reads are of whole pages, which neighbours' bytes share.
    assert source.nbytes(16) <= a.expert_parameters * bits / 8 + 3 * 2 * 4096
    assert engine.decoder.nbytes < a.non_expert_parameters * 2 * (0.75 if kind == "Q8_0" else 0.55)
    expected, found = exact.logits(ids), engine.logits(ids)
    # Here and there rounding chooses another expert, so not every token is near.
    difference = (found.float().softmax(-1) - expected.softmax(-1)).abs().sum(-1)
    assert float(difference.median()) < 0.15
    best = expected.topk(2, dim=-1)
    sure = best.values[..., 0] - best.values[..., 1] > 0.5
    assert (found.argmax(-1) == best.indices[..., 0])[sure].float().mean() > 0.85
    half = Plan.uniform(*engine.plan.shape, resident=False)
    assert torch.equal(Engine(open_model(path), half).logits(ids), found)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_what_the_package_decodes(kind: str, tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model", intermediate_size=64)
    path = write(tmp_path / "model", tmp_path / "model.gguf", kind)
    exact, found = Checkpoint(tmp_path / "model"), Checkpoint(path)
    stored = gguf.GGMLQuantizationType[kind]
    for name in (*found.expert_names(1, 3), "model.layers.0.self_attn.v_proj.weight", "lm_head.weight"):
        value = exact.tensor(name).numpy()
        expected = gguf.quants.dequantize(gguf.quants.quantize(value, stored), stored).reshape(value.shape)
        assert np.array_equal(found.tensor(name).float().numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "MXFP4", "Q2_K", "Q3_K", "IQ4_XS", "IQ4_NL"])
def test_blocks_of_any_bytes_are_read_row_by_row(kind: str, tmp_path: Path) -> None:
    """Formats that the package cannot write: bytes of one expert among others are decoded as they are alone."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rows, inputs = 6, 2 * max(block, 256)
    data = np.random.default_rng(3).integers(0, 60, (4, rows, inputs // block * size), dtype=np.uint8)
    path = tmp_path / "bytes"
    path.write_bytes(b"begin" + data.tobytes())
    entry = Blocks(path, "w", kind, (4, rows, inputs), 5, data.nbytes).part(2, 4, (rows, inputs))
    assert isinstance(entry, Coded)  # which memory holds as its codes
    expected = gguf.quants.dequantize(data[2], gguf.GGMLQuantizationType[kind])
    assert np.array_equal(entry.read().numpy(), expected, equal_nan=True)


def test_tokenizer_and_template_come_from_the_file(tmp_path: Path) -> None:
    model = Path(__file__).parents[3] / "data/models/mini-mixtral"
    path = write(model, tmp_path / "mini.gguf", "BF16")
    folder = model_folder(path)
    text = "def f(x):\n    return x**2  # naïve 你好 \U0001f600\n"
    assert tokenize(folder, text) == tokenize(model, text)
    ours, theirs = chat_tokenizer(folder), chat_tokenizer(model)
    turns = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(turns) == theirs.apply_chat_template(turns)
    assert ours.eos_token_id == theirs.eos_token_id
    generated = [
        CliRunner().invoke(app, ["moe", "generate", "--model", str(at), "--new-tokens", "8", "The file"]).output
        for at in (path, model)
    ]
    # Two lines tell speed and bytes: an expert lies at other offsets in its file.
    said = [[line for line in text.splitlines() if " bytes " not in line] for text in generated]
    assert said[0] == said[1] != []


def test_a_file_is_unpacked_once_and_anew_when_it_changes(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "model.gguf")
    first = model_folder(path)
    assert first.name == "model"
    stamp = (first / "config.json").stat().st_mtime_ns
    assert model_folder(path) == first == model_folder(path.parent / "." / path.name)
    assert (first / "config.json").stat().st_mtime_ns == stamp
    write(tmp_path / "model", path, "F16")
    assert model_folder(path) != first


def test_a_folder_with_one_file_counts_as_it(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "here" / "model.gguf") if (tmp_path / "here").mkdir() is None else None
    assert path is not None
    assert model_folder(tmp_path / "here") == model_folder(path)
    (tmp_path / "here" / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"several GGUF files; name one: model\.gguf, other\.gguf"):
        model_folder(tmp_path / "here")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_file_is_one_sentence(share: float, tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UserError, match=r"model\.gguf: .*fetch the file again"):
        Checkpoint(path)


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "model.gguf", **{"general.architecture": "mamba"})
    result = CliRunner().invoke(app, ["generate", "--model", str(path), "hello"])
    assert isinstance(result.exception, UserError)  # `main` makes one line and exit code 2 of it
    with pytest.raises(UserError, match=r"the architecture is 'mamba'.*supported in GGUF: .*qwen3moe"):
        model_folder(path)
    with pytest.raises(UserError, match=r"absent\.gguf: no such file"):
        model_folder(tmp_path / "absent.gguf")


def test_shards_are_one_model(tmp_path: Path) -> None:
    make("mixtral", tmp_path / "model")
    whole = write(tmp_path / "model", tmp_path / "model.gguf")
    reader = gguf.GGUFReader(whole)
    paths = [tmp_path / f"split-{index:05}-of-00002.gguf" for index in (1, 2)]
    for index, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        if index == 0:
            for name, field in reader.fields.items():
                if not name.startswith(("GGUF.", "general.architecture")):
                    writer.add_key_value(name, field.contents(), field.types[0], *field.types[1:2])
        for tensor in reader.tensors[index::2]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    ids = list(range(3, 20))
    expected = Engine.load(whole, dtype=torch.float32).logits(ids)
    assert torch.equal(Engine.load(paths[1], dtype=torch.float32).logits(ids), expected)
    paths[0].unlink()
    with pytest.raises(UserError, match=r"split-00001-of-00002\.gguf: missing; it is one of the 2 files"):
        model_folder(paths[1])

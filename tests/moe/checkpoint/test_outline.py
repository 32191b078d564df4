"""Sizes of a model's parts from headers, from configurations and from shipped shapes, against sums made another way."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_models import write
from safetensors.torch import load_file, save_file
from tiny_families import MODELS, make
from typer.testing import CliRunner

from lumoe.cli.moe.plan import app
from lumoe.errors import UserError
from lumoe.files import read_yaml
from lumoe.moe.architectures.read import SHAPE_KEYS, read_shape
from lumoe.moe.checkpoint.outline import Outline, gguf_shards, read_outline
from lumoe.moe.engine.open import open_model
from lumoe.moe.planning.parts import EXPERTS
from lumoe.resources import data_path

SHAPES = sorted(path.stem for path in data_path("shapes").glob("*.yaml"))
# Weights that a token uses as published, in units of 10⁹: without the input embedding where the paper says so.
ACTIVE = {
    "gpt-oss-20b": (3.61, False),  # arXiv 2508.10925, table 1
    "gpt-oss-120b": (5.13, False),
    "mixtral-8x7b": (12.9, True),  # arXiv 2401.04088: 13 B, 12.9 with all digits
    "deepseek-v3": (37, False),  # arXiv 2412.19437
    "qwen3-235b-a22b": (22, True),  # arXiv 2505.09388
}


@pytest.fixture(autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))


def part(outline: Outline, name: str) -> Any:
    return next(size for size in outline.parts.sizes if size.name == name)


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def header_bytes(path: Path) -> int:
    return 8 + int(struct.unpack("<Q", path.read_bytes()[:8])[0])


@pytest.mark.parametrize("name", SHAPES)
def test_parts_of_a_shipped_shape_sum_to_the_published_total(name: str) -> None:
    parts, shape = read_outline(name).parts, read_shape(name)
    values = read_yaml(data_path("shapes", f"{name}.yaml"))
    published = 46.7e9 if name == "mixtral-8x7b" else float(values["parameters"])
    assert sum(size.parameters for size in parts.sizes) == pytest.approx(published, rel=0.005)
    assert parts.nbytes == shape.bytes_full == 2 * parts.parameters
    assert part(read_outline(name), EXPERTS).each == (2 * shape.expert_parameters,) * 2
    text = plan("--model", name, "--budget", "70%", "--prefer", "throughput")
    assert text.count(" bf16") == len(parts.sizes) >= 5


@pytest.mark.parametrize("name", ACTIVE)
def test_weights_that_a_token_uses_are_those_published(name: str) -> None:
    published, with_embedding = ACTIVE[name]
    shape, found = read_shape(name), read_outline(name).parts.token_parameters
    embedding = shape.vocab_size * shape.hidden_size if with_embedding else 0
    assert (found + embedding) / 1e9 == pytest.approx(published, rel=0.015)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_headers_and_configuration_agree_with_the_tensors(name: str, tmp_path: Path) -> None:
    make(name, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    read = read_outline(str(tmp_path))
    # transformers' names: what they have in common with ours is the word.
    routed = [v for k, v in tensors.items() if (".experts." in k and "bias" not in k) or "put_linear" in k]
    routed = [v for k, v in tensors.items() if "block_sparse_moe" in k and "put_linear" in k] or routed
    assert part(read, EXPERTS).parameters == sum(value.numel() for value in routed)
    assert read.parts.parameters == sum(value.numel() for value in tensors.values())
    assert read.parts.nbytes + read.parts.unused == sum(value.nbytes for value in tensors.values())
    assert read.parts.source == "read from the headers of 1 safetensors file"
    (tmp_path / "model.safetensors").unlink()
    computed = read_outline(str(tmp_path))
    assert [size.parameters for size in computed.parts.sizes] == [size.parameters for size in read.parts.sizes]
    assert computed.parts.source == "computed from config.json, 16 bits a weight assumed"


def test_a_configuration_of_32_bits_says_so(tmp_path: Path) -> None:
    make("mixtral", tmp_path)
    whole = read_outline(str(tmp_path)).parts
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "only.json").write_text(json.dumps({**values, "dtype": "float32"}))
    (tmp_path / "half.json").write_text(json.dumps({**values, "dtype": "bfloat16"}))
    assert read_outline(str(tmp_path / "only.json")).parts.nbytes == whole.nbytes
    assert read_outline(str(tmp_path / "half.json")).parts.nbytes == whole.nbytes // 2


def test_a_file_cut_off_after_its_header_tells_as_much_as_a_whole_one(model_bf16: Path, tmp_path: Path) -> None:
    whole = read_outline(str(model_bf16))
    for file in model_bf16.iterdir():
        content = file.read_bytes()
        (tmp_path / file.name).write_bytes(content[: header_bytes(file)] if file.suffix == ".safetensors" else content)
    cut = read_outline(str(tmp_path))
    assert cut.parts.sizes == whole.parts.sizes
    shards = len(list(tmp_path.glob("*.safetensors")))
    assert shards > 1
    assert cut.parts.source == f"read from the headers of {shards} safetensors files, which end before their weights do"
    # Without one of its shards a model is computed from its configuration; the index still says how much there is.
    next(tmp_path.glob("*.safetensors")).unlink()
    without = read_outline(str(tmp_path))
    assert without.parts.sizes == whole.parts.sizes
    total = sum(file.stat().st_size - header_bytes(file) for file in model_bf16.glob("*.safetensors"))
    assert without.parts.source.endswith(f"model.safetensors.index.json says {total / 1e3:.2f} kB in all")
    assert "computed from config.json, 16 bits a weight assumed" in plan(
        "--model", str(tmp_path), "--budget", "50%", "--prefer", "quality"
    )


def test_a_damaged_header_is_refused_by_the_name_of_the_model(model_bf16: Path, tmp_path: Path) -> None:
    for file in model_bf16.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    for damage, message in (
        (content[:5], "not a whole safetensors file"),
        (struct.pack("<Q", 2**60) + content[8:], "implausible header length"),
        (content[:8] + b"[" + content[9:], "not a whole safetensors file"),
        (content + b"more", "4 bytes after the last tensor"),
        (content[: header_bytes(shard) - 9], "not a whole safetensors file"),
    ):
        shard.write_bytes(damage)
        with pytest.raises(UserError, match=message) as caught:
            read_outline(str(tmp_path))
        assert str(caught.value).startswith(str(shard))


def fp8(folder: Path) -> dict[str, torch.Tensor]:
    """Store a tiny model's projections as fp8 in blocks of 24 by 24."""
    make("qwen3_moe", folder, torch.bfloat16)
    stored = {}
    for name, value in load_file(folder / "model.safetensors").items():
        stored[name] = value
        if name.endswith("proj.weight"):
            stored[name] = value.to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = torch.ones(*(-(-n // 24) for n in value.shape))
    declare(folder, quant_method="fp8", weight_block_size=[24, 24])
    return stored


def mxfp4(folder: Path) -> dict[str, torch.Tensor]:
    """Store a tiny model's experts as MXFP4."""
    make("gpt_oss", folder, torch.bfloat16, intermediate_size=64)
    stored = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = value.shape
            stored[f"{name}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
            stored[f"{name}_scales"] = torch.full((experts, outputs, inputs // 32), 127, dtype=torch.uint8)
        else:
            stored[name] = value
    declare(folder, quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "lm_head"])
    return stored


def int4(folder: Path) -> dict[str, torch.Tensor]:
    """Store a tiny model's projections as GPTQ does, but those of the first layer's attention."""
    make("qwen3_moe", folder, torch.bfloat16)
    stored = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if not name.endswith("proj.weight") or "layers.0.self_attn" in name:
            stored[name] = value
            continue
        (outputs, inputs), base = value.shape, name.removesuffix("weight")
        stored[f"{base}qweight"] = torch.zeros(inputs // 8, outputs, dtype=torch.int32)
        stored[f"{base}qzeros"] = torch.zeros(inputs // 32, outputs // 8, dtype=torch.int32)
        stored[f"{base}scales"] = torch.ones(inputs // 32, outputs, dtype=torch.float16)
        stored[f"{base}g_idx"] = torch.arange(inputs, dtype=torch.int32) // 32
    declare(
        folder, quant_method="gptq", bits=4, group_size=32, desc_act=False,
        dynamic={r"-:.*layers\.0\.self_attn.*": {}},
    )  # fmt: skip
    return stored


def declare(folder: Path, **settings: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))


@pytest.mark.parametrize(("store", "form"), [(fp8, "fp8"), (mxfp4, "MXFP4"), (int4, "gptq")])
def test_codes_count_as_the_files_have_them(store: Any, form: str, tmp_path: Path) -> None:
    stored = store(tmp_path)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    read = read_outline(str(tmp_path))
    assert read.parts.nbytes == sum(value.nbytes for value in stored.values())
    experts = part(read, EXPERTS)
    assert experts.formats == (form,)
    routed = [v for k, v in stored.items() if "experts" in k and not k.endswith("_bias") and "correction" not in k]
    assert experts.nbytes == sum(value.nbytes for value in routed) == experts.count * experts.each[0]
    # The configuration alone says the same.
    (tmp_path / "model.safetensors").rename(tmp_path / "elsewhere")
    computed = read_outline(str(tmp_path))
    assert computed.parts.sizes == read.parts.sizes
    assert computed.parts.source.endswith(f"quantization_config says {form.lower()}")


@pytest.mark.parametrize("store", [fp8, mxfp4, int4])
def test_what_codes_take_in_memory_is_what_the_engine_takes(store: Any, tmp_path: Path) -> None:
    save_file(store(tmp_path), tmp_path / "model.safetensors", {"format": "pt"})
    memory, opened = read_outline(str(tmp_path)).memory(4, 64), open_model(tmp_path).memory
    assert memory.stored == opened.stored
    assert memory.expert[16] == pytest.approx(opened.expert[16], abs=4096)  # there in whole pages
    assert memory.non_expert == pytest.approx(opened.non_expert, rel=0.02)


@pytest.mark.parametrize(("name", "kind"), [("mixtral", "Q8_0"), ("qwen3_moe", "Q4_0"), ("gpt_oss", "F16")])
def test_gguf_files(name: str, kind: str, tmp_path: Path) -> None:
    make(name, tmp_path / "model", **{f"{'moe_' * (name == 'qwen3_moe')}intermediate_size": 1024})
    path = write(tmp_path / "model", tmp_path / "tiny.gguf", kind)
    read, whole = read_outline(str(path)), path.read_bytes()
    assert read.parts.parameters == read_outline(str(tmp_path / "model")).parts.parameters
    assert read.parts.source == "read from the headers of tiny.gguf"
    # Tensors fill the file but for its header and what aligns them.
    assert 0.5 * len(whole) < read.parts.nbytes < len(whole)
    memory, opened = read.memory(4, 64), open_model(path).memory
    # Each of an expert's three matrices is read in whole pages from where it lies.
    assert 0 <= opened.expert[16] - memory.expert[16] <= 3 * 2 * 4096 < 0.25 * memory.expert[16]
    assert memory.non_expert == pytest.approx(opened.non_expert, rel=0.02)
    assert memory.stored == opened.stored == ("" if kind == "F16" else kind)
    start = len(whole) - read.parts.nbytes
    cut = tmp_path / "cut" / "tiny.gguf"
    cut.parent.mkdir()
    cut.write_bytes(whole[:start])
    again = read_outline(str(cut))
    assert again.parts.sizes == read.parts.sizes
    assert again.parts.source.endswith("which end before their weights do")
    assert read_outline(str(cut.parent)).parts.sizes == read.parts.sizes  # the folder's only file
    text = plan("--model", str(cut), "--budget", "60%", "--prefer", "quality")
    assert (f"as {kind}" in text) == (kind != "F16")
    for damage in (whole[:40], b"NOPE" + whole[4:], whole[:8] + b"\xff" * 8 + whole[16:]):
        cut.write_bytes(damage)
        with pytest.raises(UserError, match="not a whole GGUF file"):
            read_outline(str(cut))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make("mixtral", tmp_path / "model")
    path = write(tmp_path / "model", tmp_path / "tiny.gguf")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read_outline(str(path))
    read_outline(str(tmp_path / "model"))
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "cache").exists()


def test_which_gguf_file_is_meant() -> None:
    names = {
        "a-Q4_K_M.gguf",
        "a-Q8_0-00001-of-00002.gguf",
        "a-Q8_0-00002-of-00002.gguf",
        "mmproj-a.gguf",
        "config.json",
    }
    assert gguf_shards(names, "a-Q4_K_M.gguf", "here") == ["a-Q4_K_M.gguf"]
    assert gguf_shards(names, "q4_k_m", "here") == ["a-Q4_K_M.gguf"]
    both = ["a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf"]
    assert gguf_shards(names, "Q8_0", "here") == gguf_shards(names, both[1], "here") == both
    for wanted, message in ((None, "2 GGUF files; name one: a-Q4_K_M"), ("Q2", "no GGUF files are named like 'Q2'")):
        with pytest.raises(UserError, match=message):
            gguf_shards(names, wanted, "here")
    with pytest.raises(UserError, match=r"00002-of-00002.gguf is missing"):
        gguf_shards(names - {both[1]}, "Q8_0", "here")
    with pytest.raises(UserError, match=r"neither config.json nor a GGUF file"):
        gguf_shards({"README.md"}, None, "here")


def test_programs_get_the_parts_too(tmp_path: Path) -> None:
    shipped = read_yaml(data_path("shapes", "qwen3-30b-a3b.yaml"))
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in shipped.items() if k not in SHAPE_KEYS}))
    value = json.loads(plan("--model", str(tmp_path), "--budget", "20GB", "--prefer", "throughput", "--json"))
    assert sum(row["parameters"] for row in value["parts"]) == value["parameters"]
    assert value["parts"][-1]["name"] == EXPERTS
    assert value["parts"][-1]["count"] == 48 * 128
    assert value["predicted_tokens_per_s"] is value["hardware"] is None


def test_without_a_profile_there_is_a_plan_and_no_speed(tmp_path: Path) -> None:
    arguments = ("--model", "qwen3-30b-a3b", "--budget", "20GB", "--prefer", "throughput")
    text = plan(*arguments)
    assert "speed       not known: measure a profile of this machine with `lumoe moe calibrate`" in text
    assert "at 4 bits" in text
    with pytest.raises(UserError, match="need a profile of this machine"):
        plan(*arguments, "--min-tokens-per-s", "1")
    with pytest.raises(UserError, match=r"machine\.json: no profile of this machine"):
        plan(*arguments, "--measurements", str(tmp_path))


@pytest.mark.parametrize("text", ["[]", "{", '{"model_type": "llama"}', '{"model_type": "mixtral"}'])
def test_a_wrong_configuration_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_outline(str(tmp_path))


def test_sizes_that_no_disk_has_are_one_sentence(tmp_path: Path) -> None:
    make("mixtral", tmp_path)
    path = tmp_path / "model.safetensors"
    for end in (2**62, 2**80):
        header = json.dumps({"x": {"dtype": "F32", "shape": [end // 4], "data_offsets": [0, end]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(UserError, match=r"no stand-in of \d+ bytes can be made"):
            read_outline(str(tmp_path))


def test_an_index_names_no_files_elsewhere(tmp_path: Path) -> None:
    """What is not in the folder itself is not read, and the configuration is enough."""
    make("mixtral", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"metadata": {"total_size": 10}, "weight_map": {"lm_head.weight": "../outside.safetensors"}}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_outline(str(tmp_path / "model")).parts.source.startswith("computed from config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "'group_size' must be a number of weights or -1"),
        ({"quant_method": "fp8", "modules_to_not_convert": "gate"}, "'modules_to_not_convert' must be a list"),
        ({"quant_method": "bitsandbytes"}, "weights quantised with 'bitsandbytes' are not supported"),
        ("fp8", "are not supported"),
    ],
)
def test_a_format_that_says_nothing_sensible_is_refused(settings: Any, message: str, tmp_path: Path) -> None:
    make("qwen3_moe", tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": [], "weight_map": {}}')
    with pytest.raises(UserError, match=f"{path}: .*{message}"):
        read_outline(str(tmp_path))

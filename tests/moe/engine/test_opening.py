"""What opening a model reads: the weights outside the experts and the residents of its plan, nothing else."""

from __future__ import annotations

import logging
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import write
from safetensors.torch import load_file, save_file
from tiny_families import make
from torch import bfloat16, randint, uint8
from typer.testing import CliRunner

from lumoe.cli.moe import app
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import open_model
from lumoe.moe.offload.storage import BLOCK
from lumoe.moe.planning.plan import Plan
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

RESIDENT = 4
# Each expert's three matrices begin and end within pages.
PAGES = 3 * 2 * BLOCK


def names_of_experts(checkpoint: Checkpoint) -> set[str]:
    layers, experts = checkpoint.architecture.plan_shape
    return {name for at in np.ndindex(layers, experts) for name in checkpoint.expert_names(*at)}


def model(kind: str, folder: Path) -> Path:
    """A model whose experts take some pages each, stored in one of the ways that there are."""
    sizes: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192}
    if kind == "safetensors":
        make("mixtral", folder, bfloat16, **sizes)
    elif kind == "stacked, halves in turn":
        make("gpt_oss", folder, bfloat16, **sizes)
    elif kind == "MXFP4":
        make("gpt_oss", folder, bfloat16, **sizes)
        tensors = load_file(folder / "model.safetensors")
        for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
            experts, inputs, outputs = tensors.pop(name).shape
            tensors[f"{name}_blocks"] = randint(0, 256, (experts, outputs, inputs // 32, 16)).to(uint8)
            tensors[f"{name}_scales"] = randint(122, 126, (experts, outputs, inputs // 32)).to(uint8)
        save_file(tensors, folder / "model.safetensors")
        text = (folder / "config.json").read_text()
        (folder / "config.json").write_text(text.replace("{", '{"quantization_config": {"quant_method": "mxfp4"},', 1))
    else:
        make("mixtral", folder, **sizes)
        return write(folder, folder / "model.gguf", kind)
    return folder


def file_bytes(path: Path) -> tuple[int, int]:
    """Bytes of the weights outside the experts, and of one expert, counted from the lists of tensors in the files."""
    checkpoint = Checkpoint(path)
    inside = names_of_experts(checkpoint)
    layers, experts = checkpoint.architecture.plan_shape
    stored = {name: entry.nbytes for name, entry in checkpoint.entries.items()}
    theirs = re.compile(r".*(experts\.\d+\.w\d\.weight|experts\.(gate_up|down)_proj(_blocks|_scales)?|_exps\.weight)")
    of_experts = sum(size for name, size in stored.items() if theirs.fullmatch(name))
    assert len(inside) == layers * experts * 3
    return sum(stored.values()) - of_experts, of_experts // (layers * experts)


@pytest.mark.parametrize("kind", ["safetensors", "stacked, halves in turn", "MXFP4", "Q4_0", "F16"])
def test_only_residents_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = model(kind, tmp_path)
    outside, expert = file_bytes(path)
    opened = open_model(path)
    # Every tensor once; gpt-oss's biases of experts are read one by one, each once.
    assert (opened.opening.outside, opened.opening.experts) == (outside, 0)
    bits = np.full(opened.plan_shape, 16)
    plan = Plan(bits, np.arange(bits.size).reshape(bits.shape) % 3 == 0)
    residents = int(plan.resident.sum())
    assert RESIDENT < residents < bits.size / 2
    Engine(opened, plan)
    read = opened.opening.experts
    # What is not stored as it computes is written to a file in its kernel's layout, and read again from there.
    direct = kind in ("safetensors", "Q4_0")
    least, again = residents * expert, 0 if direct else residents * opened.source.nbytes(16)
    assert least <= read - again <= least + residents * PAGES
    assert opened.opening.outside == outside
    with caplog.at_level(logging.INFO):
        engine = Engine.load(path, plan=Plan(bits, bits < 0))
    said = re.fullmatch(
        r"opened in [\d.]+ s: (\d+) bytes read \(outside the experts (\d+), experts 0\)", caplog.messages[-1]
    )
    assert said is not None
    assert int(said[1]) == int(said[2]) == outside
    engine.logits([5, 9, 4])
    assert engine.model.opening.experts > 0  # the first pass reads what it misses


MINI = Path(__file__).parents[3] / "data/models/mini-mixtral"
SAID = r"opened in [\d.]+ s: (\d+) bytes read \(outside the experts (\d+), experts (\d+)\); (\d+) bytes held"


def generated(budget: str) -> list[int]:
    words = ["generate", "--model", str(MINI), "--budget", budget, "--new-tokens", "1", "Return the"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    found = re.search(SAID, done.output)
    assert found is not None
    return list(map(int, found.groups()))


def test_the_command_tells_what_its_budget_reads() -> None:
    """The model has a manifest, too: that its files were read once more for their sums is told apart."""
    total, outside, experts, checked = generated("100%")
    stored = sum(entry.nbytes for entry in Checkpoint(MINI).entries.values())
    assert total == outside + experts
    assert stored <= total < stored + 48 * PAGES
    assert checked == sum(path.stat().st_size for path in MINI.iterdir() if path.name != "manifest.json")
    _, same, fewer, _ = generated("30%")
    assert same == outside
    # 7 of 32 are resident; each is read at 16 bits, rounded to 8, and read again from where that was written.
    assert fewer == pytest.approx(7 / 32 * 1.5 * experts, rel=0.02)


def test_the_server_tells_it_once_its_experts_are_there(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        server = load(Setup(MINI, budget="100%"), Limits(2, 64))
        for budget in (server.governor.budget_bytes, server.governor.minimum_bytes):
            server.governor.set_budget(budget, "throughput")
            while not server.governor.settled:
                time.sleep(0.01)
        server.governor.close()
    told = [message for message in caplog.messages if message.startswith("opened in")]
    assert len(told) == 1
    found = re.fullmatch(f"{SAID} to the manifest's sums before", told[0])
    assert found is not None
    assert [int(group) for group in found.groups()] == generated("100%")

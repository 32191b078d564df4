"""A model several times its budget runs within it: resident memory of the process, as the system counts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.checkpoint.weights import expected_shapes

SHAPE = {
    "model_type": "mixtral",
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 2560,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 32,
    "num_experts_per_tok": 2,
}

PROGRAM = """
import gc, json, sys
from pathlib import Path
import numpy as np, torch
from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Plan

torch.set_num_threads(1)
status = lambda key: next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith(key + ":"))
model, warm = sys.argv[1:3]
Engine.load(warm, plan=Plan.uniform(1, 32, resident=False)).generate(list(range(16)), 4)
gc.collect()  # else the first engine's memory, freed later, would hide some of the second one's
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
before = status("VmRSS")
plan = Plan(np.full((6, 32), 16), np.arange(6 * 32).reshape(6, 32) % 8 == 0)
engine = Engine.load(model, plan=plan)
engine.generate(list(range(16)), 4)
peak, budget = status("VmHWM") - before, engine.bytes_fast
grown = status("VmRSS")
engine.reconfigure(Plan.uniform(6, 32, resident=False))
print(json.dumps({"peak": peak, "budget": budget, "freed": grown - status("VmRSS"),
                  "given_up": budget - engine.bytes_fast, "misses": engine.metrics()["misses"]}))
"""


def make(folder: Path, layers: int) -> Path:
    folder.mkdir()
    values = {**SHAPE, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(values))
    shapes = expected_shapes(Architecture.model_validate(values))
    block = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).mul_(0.02).bfloat16()
    tensors = {}
    for index, (name, shape) in enumerate(shapes.items()):
        size = torch.Size(shape).numel()
        tensors[name] = block.roll(97 * index)[:size].reshape(shape).clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc to measure memory")
def test_peak_memory_stays_within_the_budget(tmp_path: Path) -> None:
    model, warm = make(tmp_path / "model", 6), make(tmp_path / "warm", 1)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(warm)], capture_output=True, text=True, check=True, timeout=120
    )
    found = json.loads(done.stdout)
    assert (model / "model.safetensors").stat().st_size > 5 * found["budget"]
    assert found["misses"] > 0
    assert found["peak"] <= 1.1 * found["budget"]
    # What a smaller plan gives up goes back to the system.
    assert found["freed"] >= 0.9 * found["given_up"] > 0

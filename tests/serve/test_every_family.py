"""What a model goes through, from quantising it to serving it under a changing budget, for families unlike Mixtral."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from running import TEXTS, serving
from tiny_families import make
from typer.testing import CliRunner

from lumoe.cli import corpus
from lumoe.cli.moe import app
from lumoe.moe.architectures.read import read_architecture
from lumoe.moe.checkpoint.tokenizer import train_tokenizer
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

VOCABULARY = 320
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


def run(*words: object, app: object = app) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])  # type: ignore[arg-type]
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, built = tmp_path_factory.mktemp("texts"), tmp_path_factory.mktemp("corpora")
    for name in ("train.txt", "valid.txt", "test.txt"):
        (texts / name).write_text("\n".join(TEXTS * 60))
    run("build", "--source", f"t=folder:{texts}", "--output", built, app=corpus.app)
    return built / "t"


@pytest.mark.parametrize("name", ["gpt_oss", "glm4_moe", "deepseek_v3", "qwen3_next", "granitemoeshared"])
def test_a_family_goes_all_the_way(name: str, tmp_path: Path, corpora: Path) -> None:
    model, made, measured = tmp_path / "model", tmp_path / "int4", tmp_path / "measured"
    wide = "intermediate_size" if name in ("gpt_oss", "granitemoeshared") else "moe_intermediate_size"
    make(name, model, torch.bfloat16, vocab_size=VOCABULARY, **{wide: 64})
    tokenizer = train_tokenizer(TEXTS * 50, VOCABULARY, 256)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(model)
    experts = int(np.prod(read_architecture(model).plan_shape))

    to_quantize = ("--corpus", corpora, "--tokens", 512, "--sequence", 64, "--method", "rtn", "--group-size", 32)
    run("quantize", "--model", model, *to_quantize, "--output", made)
    both, scored = ("--model", model, "--quantized", made), ("--corpus", corpora, "--window", 32, "--windows", 2)
    run("sensitivity", *both, *scored, "--bits", 4, "--output", measured / "sensitivity.csv")
    run("perplexity", *both, *scored, "--count", 0, "--count", experts, "--output", measured / "windows.csv")
    run("calibrate", *both, "--seconds", 0.01, "--threads", 1, "--output", measured / "machine.json")
    costs = pd.read_csv(measured / "sensitivity.csv")
    assert len(costs) == experts
    assert (costs["divergence"] > 0).all()
    losses = pd.read_csv(measured / "windows.csv").groupby("quantized_experts")["nll"].sum()
    assert losses[0] != losses[experts]
    wish = ("--measurements", measured, "--budget", "60%", "--prefer", "throughput")
    plan = json.loads(run("plan", *both, *wish, "--json"))
    assert plan["predicted_tokens_per_s"] > 0
    assert plan["bytes_fast"] <= plan["budget_bytes"]
    assert (np.array(plan["bits"]) == 4).sum() == plan["quantized_experts"] > 0
    assert np.array(plan["resident"]).sum() == plan["resident_experts"] > 0
    assert "the quick" in run("generate", *both, *wish, "--new-tokens", 4, "the quick")

    setup = Setup(model, made, measurements=measured)
    with serving(setup, Limits(slots=4, context=128)) as running, running.client() as client:
        body = {
            "model": running.name, "messages": [{"role": "user", "content": "the quick"}], "max_tokens": 8,
            "temperature": 0, "ignore_eos": True,
        }  # fmt: skip
        first = client.post("/v1/chat/completions", json=body).json()
        assert first["usage"]["completion_tokens"] == 8
        least = client.get("/v1/budget").json()["minimum_bytes"]
        for budget in ("80%", str(int(1.02 * least)), "100%"):
            changed = client.put("/v1/budget", json={"budget": budget})
            assert changed.status_code == 200, changed.text
            answer = client.post("/v1/chat/completions", json=body).json()
            assert answer["usage"]["completion_tokens"] == 8
        assert answer["choices"][0]["message"]["content"] == first["choices"][0]["message"]["content"]

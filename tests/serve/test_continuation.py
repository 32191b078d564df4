"""`lumoe moe generate` says what the server and transformers say, plans as the server does, and knows the context."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import serving
from spoken import KINDS, chain, random_model, scripted
from transformers import AutoTokenizer, MixtralForCausalLM
from typer.testing import CliRunner, Result

from lumoe.cli.moe.run import app
from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.quantization.quantize import Recipe, quantize
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits

PROMPTS = ["there was a house", "中文 🦊", "the sea near  a"]
both = pytest.mark.parametrize("kind", KINDS)


def generate(*words: object, dtype: str = "float32") -> Result:
    return CliRunner().invoke(app, [*map(str, words), "--dtype", dtype])


@both
def test_generate_the_server_and_transformers_agree(kind: str, tmp_path: Path) -> None:
    folder = random_model(tmp_path / "model", KINDS[kind]())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = MixtralForCausalLM.from_pretrained(folder).eval()
    with serving(Setup(folder, dtype="float32"), Limits(slots=2, context=64)) as running, running.client() as client:
        for prompt in PROMPTS:
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.inference_mode():
                made = network.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
            ours = generate("--model", folder, "--new-tokens", 12, prompt)
            assert ours.exit_code == 0, ours.output
            body = {"model": running.name, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 0}
            choice = client.post("/v1/completions", json=body).json()["choices"][0]
            assert ours.stdout.removesuffix("\n") == prompt + choice["text"]
            answer = made[ids.shape[1] :].tolist()
            names = [running.server.prompts.token_text(token) for token in answer if token != tokenizer.eos_token_id]
            assert choice["logprobs"]["tokens"] == names
            if "\ufffd" not in choice["text"]:
                assert tokenizer.decode(made, skip_special_tokens=True) == prompt + choice["text"]


@both
def test_spaces_are_kept_and_the_end_ends(kind: str, tmp_path: Path) -> None:
    tokenizer = KINDS[kind]()
    was, near = (tokenizer.encode(f"a {word}", add_special_tokens=False)[-1] for word in ("was", "near"))
    follows = chain(tokenizer.encode("there")[-1], was, near, tokenizer.eos_token_id, was)
    folder = scripted(tmp_path / "model", tokenizer, follows)
    found = generate("--model", folder, "--new-tokens", 9, "there")
    assert found.stdout == "there was near\n"


def test_a_budget_is_planned_for_as_by_the_server(model: Path, tmp_path: Path) -> None:
    quantize(Checkpoint(model), torch.randint(0, 320, (4, 16)), tmp_path / "q", Recipe("rtn", 4, 64))
    folder = ["--model", model, "--quantized", tmp_path / "q", "--measurements", tmp_path]
    found = generate(*folder, "--budget", "60%", "--new-tokens", 4, "the quick", dtype="bfloat16")
    assert found.exit_code == 0, found.output
    server = load(Setup(model, tmp_path / "q", "60%", measurements=tmp_path), Limits(2, 32))
    try:
        while server.engine.load_next():
            pass
        planned = server.engine.plan
        assert 0 < planned.quantized_experts < planned.bits.size
        assert f"{server.engine.bytes_fast} bytes fast" in found.stderr
    finally:
        server.governor.close()


def test_longer_than_the_model_was_made_for_is_refused_everywhere(model: Path) -> None:
    ids = Engine.load(model, dtype=torch.float32)
    with pytest.raises(UserError, match="257 tokens exceeds the 256 that this model was made for"):
        ids.logits([1] * 257)
    with pytest.raises(UserError, match="exceeds the 256"):
        ids.generate([1] * 10, 250)
    assert ids.logits([1] * 256).shape == (256, 320)
    with pytest.raises(UserError, match="257 tokens exceeds the 256"):
        load(Setup(model), Limits(slots=1, context=257))
    with pytest.raises(UserError, match="exceeds the 256"):
        quantize(Checkpoint(model), torch.ones(1, 300, dtype=torch.int64), model / "q", Recipe("rtn", 4, 64))
    found = generate("--model", model, "--new-tokens", 256, "the quick")
    assert isinstance(found.exception, UserError)
    assert "exceeds the 256" in str(found.exception)


@pytest.mark.parametrize("prompt", ["", "a\udcff"])
def test_a_prompt_that_is_none_is_refused(model: Path, prompt: str) -> None:
    assert isinstance(generate("--model", model, prompt).exception, UserError)

"""What llama.cpp makes of small GGUF files: the references that tests of the reader are held to.

    python -m venv build/llama && build/llama/bin/pip install xllamacpp
    python benchmarks/gguf_references.py --llama-python build/llama/bin/python

Each model is one of the tests' own, random, its weights as they are; llama.cpp's log-probabilities of every token after
some prompts go into `tests/moe/checkpoint/llama_cpp.json`, with the version that gave them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from lines import Process

from lumoe.files import write_json

TESTS = Path(__file__).parents[1] / "tests/moe"
sys.path.insert(0, str(TESTS))
# Models that llama.cpp computes as transformers does: it has no sparsemixer (phimoe) nor windows in dots1, rounds
# the ends of YaRN's ramp (gpt-oss), expects experts in every layer of Qwen's, and tells by the number of layers whether
# DeepSeek's queries are compressed.
MODELS = (
    "mixtral", "qwen3_moe-all-sparse", "qwen2_moe-all-sparse", "olmoe-ungrouped", "granitemoe", "granitemoeshared",
    "gpt_oss-plain", "glm4_moe", "glm4_moe-one-group", "dots1-ungrouped", "ernie4_5_moe", "hunyuan_v1_moe",
    "deepseek_v2-greedy", "deepseek_v3", "deepseek_v3-yarn", "qwen3_next-square", "qwen3_5_moe_text", "minimax_m2",
)  # fmt: skip
PROMPTS = (1, 5, 17, 30, 60)
LLAMA = Path(__file__).with_name("llama_lines.py")


def answer(llama: Process, ids: list[int]) -> dict[str, float]:
    """Return the log-probability of each token after a prompt."""
    found = json.loads(llama.ask(json.dumps({"prompt": ids, "n_predict": 1, "n_probs": 200})))
    return {
        str(token["id"]): round(token["logprob"], 4) for token in found["completion_probabilities"][0]["top_logprobs"]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", type=Path, required=True, help="Python that has xllamacpp")
    options = parser.parse_args()
    from gguf_models import write  # beside the tests
    from tiny_families import LEAST_VOCABULARY, checkpoint

    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(3, LEAST_VOCABULARY, (size,), generator=generator).tolist() for size in PROMPTS]
    models, version = {}, ""
    for name in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            write(checkpoint(name, at / "model"), at / "model.gguf")
            llama = Process([options.llama_python, LLAMA, at / "model.gguf", 256], subprocess.DEVNULL)
            if not llama.greeting:
                print(f"{name}: llama.cpp gave no answer")
                continue
            version, models[name] = llama.greeting.removeprefix("ready "), [answer(llama, ids) for ids in prompts]
            llama.close()
            print(f"{name}: {len(models[name])} prompts")
    made = f"xllamacpp {version}, by benchmarks/gguf_references.py"
    write_json(TESTS / "checkpoint/llama_cpp.json", {"made_by": made, "prompts": prompts, "models": models})


if __name__ == "__main__":
    main()

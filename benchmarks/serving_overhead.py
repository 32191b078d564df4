"""What the server adds to the bare engine: decode of one sequence, engine alone against HTTP and back.

    python benchmarks/serving_overhead.py --folder build/true-width --tokenizer data/models/mini-mixtral

At Mixtral's true width: two layers, random weights, all experts at one precision and resident. Rounds alternate between
the two, in one process and on one engine; the ratio is of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import httpx
import torch
from true_width_model import build

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from conftest import Running, serving_on

from lumoe.moe.engine import Engine
from lumoe.moe.plan import Plan, random_order
from lumoe.moe.serve.app import Limits, Server
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.tokenizer import load_tokenizer

PROMPT = list(range(100, 116))


def bare(engine: Engine, tokens: int) -> float:
    """Seconds per token of decoding without a server."""
    cache = engine.cache(1, len(PROMPT) + tokens)
    step = engine.step(torch.tensor([PROMPT]), cache)[:, -1].argmax(-1, keepdim=True)
    began = time.perf_counter()
    for _ in range(tokens - 1):
        step = engine.step(step, cache)[:, -1].argmax(-1, keepdim=True)
    return (time.perf_counter() - began) / (tokens - 1)


def over_http(running: Running, client: httpx.Client, tokens: int) -> float:
    """Seconds per token between the first and the last of a streamed answer, as the client sees them."""
    body = {
        "model": running.name,
        "prompt": PROMPT,
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "logprobs": 0,
    }
    times = []
    with client.stream("POST", "/v1/completions", json=body) as response:
        times = [time.perf_counter() for line in response.iter_lines() if line.startswith("data: {")]
    return (times[-1] - times[0]) / (tokens - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="any tokenizer: prompts are token ids")
    parser.add_argument("--bits", type=int, choices=[4, 16], default=4, help="of every expert")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, quantized = build(options.folder)
    engine = Engine.load(model, quantized, Plan.uniform(2, 8, bits=options.bits))
    metrics = Metrics(engine)
    governor = Governor(engine, "throughput", order=random_order(2, 8, 0), bits=4)
    prompts = Prompts(load_tokenizer(options.tokenizer), engine.decoder.architecture.vocab_size, 256)
    prompts.end_tokens = frozenset()
    server = Server(engine, prompts, governor, metrics, "wide", Limits(slots=16, context=256))
    with serving_on(server) as running, running.client() as client:
        pairs = [
            (bare(engine, options.tokens), over_http(running, client, options.tokens)) for _ in range(options.rounds)
        ]
    alone, served = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
    print(f"engine {alone * 1e3:.2f} ms a token, server {served * 1e3:.2f} ms: {served / alone - 1:+.1%}")


if __name__ == "__main__":
    main()

"""What the server adds to the bare engine: whole answers over HTTP against the engine's own loop.

    python benchmarks/serving_overhead.py --folder build/true-width --tokenizer data/models/mini-mixtral

At Mixtral's true width: two layers, random weights, all experts at one precision and resident. The server is a process
of its own and streams to its clients; the engine alone runs in this one, on equally many threads. Rounds alternate, and
whichever is not being timed does nothing. Both take the same prompts to the same number of tokens; with several clients
the engine alone takes all their sequences in one batch from the first token to the last. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from served import Served, free_port, lumoe
from true_width_model import build

from lumoe.moe.engine.engine import Engine
from lumoe.moe.planning.plan import Memory, Plan
from lumoe.moe.planning.shape import KV_BLOCK

PROMPT_TOKENS = 16
CONTEXT = 256


def bare(engine: Engine, prompts: torch.Tensor, tokens: int) -> float:
    """Seconds to draw `tokens` likeliest tokens after each of `prompts` without a server."""
    began = time.perf_counter()
    engine.generate(prompts, tokens)
    return time.perf_counter() - began


def over_http(server: Served, prompts: torch.Tensor, tokens: int) -> float:
    """Seconds until as many clients as there are prompts have their whole streamed answers."""
    body = {"model": "model", "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    began = time.perf_counter()
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(
            pool.map(lambda ids: server.stream("/v1/completions", {**body, "prompt": ids}), prompts.tolist())
        )
    seconds = time.perf_counter() - began
    if any(answer.usage.get("completion_tokens") != tokens for answer in answers):
        raise RuntimeError("an answer ended early: times would not compare")
    return seconds


def with_tokenizer(model: Path, tokenizer: Path, folder: Path) -> Path:
    """Return a folder `model` of links to a checkpoint and to another one's tokenizer: prompts are token ids."""
    linked = folder / "model"
    linked.mkdir()
    for path in [*model.iterdir(), *tokenizer.glob("*token*")]:
        (linked / path.name).symlink_to(path.resolve())
    return linked


def just_enough(memory: Memory, slots: int) -> int:
    """Return a budget for every expert at 4 bits and all keys and values; more would be spent on precision."""
    blocks = slots * -(-CONTEXT // KV_BLOCK)
    return memory.non_expert + 16 * memory.expert[4] + blocks * memory.kv_block + (1 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the model; it is made there if there is none")
    parser.add_argument("--tokenizer", type=Path, required=True, help="any model with a tokenizer")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, quantized = build(options.folder)
    # As in the server, threads that read get no team of their own: they would slow this one down.
    torch.set_num_threads(1)
    engine = Engine.load(model, quantized, Plan.uniform(2, 8, bits=4))
    torch.set_num_threads(options.threads)
    slots = max(options.clients)
    budget = str(just_enough(engine.memory, slots))
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 4000, (max(options.clients), PROMPT_TOKENS), generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        served, port = with_tokenizer(model, options.tokenizer, Path(folder)), free_port()
        settings = ["--quantized", str(quantized), "--budget", budget]
        settings += ["--slots", str(slots), "--context", str(CONTEXT)]
        with Served(lumoe(served, port, options.threads, *settings), port, options.threads) as server:
            ask = {"model": "model", "prompt": [5], "max_tokens": 2, "stream": True}
            server.answers("/v1/completions", ask)
            while not server.call("GET", "/v1/budget")[1]["settled"]:
                time.sleep(0.1)
            state = server.call("GET", "/v1/budget")[1]
            if (state["quantized_experts"], state["resident_experts"]) != (16, 16):
                raise RuntimeError(f"the server's plan is another one: {state}")
            for clients in options.clients:
                pairs = [
                    (
                        bare(engine, prompts[:clients], options.tokens),
                        over_http(server, prompts[:clients], options.tokens),
                    )
                    for _ in range(options.rounds + 1)
                ]
                alone, over = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
                speeds = " and ".join(f"{clients * options.tokens / seconds:.2f}" for seconds in (alone, over))
                print(f"{clients} clients: engine and server {speeds} tokens/s, server {over / alone - 1:+.1%} time")


if __name__ == "__main__":
    main()

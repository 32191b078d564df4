"""Many clients and a budget that changes every second: no lost and no wrong response, and how long they waited.

    python benchmarks/serving_soak.py --model data/models/mini-mixtral --quantized FOLDER --output build/soak.csv

A response is lost if it is not 200 or has too few tokens. Half of the requests ask for quality: their experts are never
quantised, so their text must equal what a quiet engine gives for the same prompt at 16 bits, wherever the two likeliest
tokens are further apart than rounding in a batch can move them. Requests are bounded by the number of clients and by
the time; everything stays on the loopback address.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serve"))
from conftest import Running, serving

from lumoe.files import write_csv
from lumoe.moe.engine import Engine
from lumoe.moe.serve.app import Limits
from lumoe.moe.serve.run import Setup

PROMPTS = [
    "Return the",
    "Parameters\n----------\nx : array",
    "The sum of two",
    "Raises ValueError if",
    "Compute the mean",
]
BUDGETS = ["100%", "45%", "70%", "35%"]


@dataclass
class Outcome:
    """One response."""

    prompt: str
    preference: str
    status: int
    seconds: float
    first_token_s: float
    tokens: int
    text: str


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    setup = Setup(options.model, options.quantized, budget="100%")
    with serving(setup, Limits(slots=16, context=256, queue=options.clients)) as running:
        outcomes, budgets_ok, changes = soak(running, options.clients, options.seconds, options.tokens)
        expected = references(options.model, running, options.tokens)
    table = pd.DataFrame([outcome.__dict__ for outcome in outcomes]).assign(
        wrong=[outcome.preference == "quality" and differs(outcome, expected) for outcome in outcomes]
    )
    lost = (table["status"] != 200) | (table["tokens"] < options.tokens)
    print(f"{len(table)} responses to {options.clients} clients, {changes} changes of budget ({budgets_ok} accepted)")
    print(
        f"lost {int(lost.sum())}, wrong {int(table['wrong'].sum())} of {int((table['preference'] == 'quality').sum())}"
    )
    for name in ("first_token_s", "seconds"):
        print(name, ", ".join(f"p{q} {np.percentile(table[name], q):.3f} s" for q in (50, 90, 95, 99)))
    write_csv(options.output, table.drop(columns="text"))
    sys.exit(int(lost.any() or table["wrong"].any() or budgets_ok != changes))


def soak(running: Running, clients: int, seconds: float, tokens: int) -> tuple[list[Outcome], int, int]:
    """Let all clients ask until the time is up while the budget changes every second."""
    stop = Event()

    def ask(number: int) -> list[Outcome]:
        choose, done = random.Random(number), []
        with running.client() as client:
            while not stop.is_set():
                preference = choose.choice(["throughput", "quality"])
                done.append(one(running, client, choose.choice(PROMPTS), preference, tokens))
        return done

    def change() -> tuple[int, int]:
        accepted = count = 0
        with running.client() as client:
            while not stop.wait(1.0):
                response = client.put("/v1/budget", json={"budget": BUDGETS[count % len(BUDGETS)]})
                accepted, count = accepted + (response.status_code == 200), count + 1
        return accepted, count

    with ThreadPoolExecutor(clients + 1) as pool:
        changer = pool.submit(change)
        asked = [pool.submit(ask, number) for number in range(clients)]
        time.sleep(seconds)
        stop.set()
        return [outcome for answers in asked for outcome in answers.result()], *changer.result()


def one(running: Running, client: httpx.Client, prompt: str, preference: str, tokens: int) -> Outcome:
    """Stream one greedy completion."""
    body = {"model": running.name, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            "preference": preference, "stream_options": {"include_usage": True}}  # fmt: skip
    began, first, text, used = time.perf_counter(), float("nan"), "", 0
    with client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = httpx.Response(200, content=line.removeprefix("data: ")).json()
            if chunk.get("usage"):
                used = chunk["usage"]["completion_tokens"]
            for choice in chunk.get("choices", []):
                first = time.perf_counter() - began if first != first else first
                text += choice["text"]
                used = tokens if choice["finish_reason"] == "stop" else used
        return Outcome(prompt, preference, response.status_code, time.perf_counter() - began, first, used, text)


def references(model: Path, running: Running, tokens: int) -> dict[str, tuple[str, int]]:
    """Return for each prompt the text at 16 bits and the number of characters before its first near tie."""
    prompts, engine, found = running.server.prompts, Engine.load(model), {}
    for prompt in PROMPTS:
        ids = prompts.encode(prompt)
        made = engine.generate(ids, tokens)
        logits = engine.logits([*ids, *made.tolist()])[len(ids) - 1 : -1].float()
        best = logits.topk(2, dim=-1).values
        # bfloat16 has 8 bits of mantissa; sums in another order move a logit by a few of its last places.
        close = (best[:, 0] - best[:, 1] < 4 * best[:, 0].abs() / 256).nonzero()
        sure = int(close[0]) if len(close) else tokens
        found[prompt] = prompts.backend.decode(made.tolist()), len(prompts.backend.decode(made[:sure].tolist()))
    return found


def differs(outcome: Outcome, expected: dict[str, tuple[str, int]]) -> bool:
    """Whether the text leaves the reference before its first near tie."""
    text, sure = expected[outcome.prompt]
    return outcome.text[:sure] != text[: min(sure, len(outcome.text))]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--quantized", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()

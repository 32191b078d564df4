"""Many clients and a budget that changes every second: no lost and no wrong response, and how long they waited.

    python benchmarks/serving_soak.py --model data/models/mini-mixtral --quantized FOLDER --output build/soak.csv

The server is a process of its own. A response is lost if it is not 200 or has too few tokens. For a few seconds all
clients ask for throughput (experts are quantised as the budget changes), for the next few for quality (they never are),
and so on. The text of an answer for quality must equal what a quiet engine gives for the same prompt at 16 bits,
wherever the two likeliest tokens are further apart than rounding in a batch can move them. Beside them `--others`
clients leave in the middle, make mistakes, chat and probe, and the memory of the server's process is watched: its slope
must not be above zero by more than `--leak` MiB per minute. Everything stays on the loopback address.
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

import numpy as np
import pandas as pd
import torch
from mixed_load import Other, disturb, slope, watch
from served import Served, free_port, lumoe

from lumoe.files import write_csv
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.engine.engine import Engine

PROMPTS = [
    "Return the",
    "Parameters\n----------\nx : array",
    "The sum of two",
    "Raises ValueError if",
    "Compute the mean",
]
BUDGETS = ["100%", "45%", "70%", "35%"]
TURN_S = 5.0


@dataclass(frozen=True)
class Outcome:
    """One response; `at_s` is when it was asked for, in seconds from the start."""

    at_s: float
    prompt: str
    preference: str
    status: int
    first_token_s: float
    seconds: float
    tokens: int
    text: str


@dataclass(frozen=True)
class Change:
    """One change of the budget."""

    budget: str
    status: int
    seconds: float


def main() -> None:
    options = parse()
    port = free_port()
    settings = ["--budget", "100%", "--queue", str(options.clients + 4 * options.others)]
    settings += ["--quantized", str(options.quantized)] if options.quantized else []
    with Served(lumoe(options.model, port, options.threads, *settings), port, options.threads) as server:
        name = options.model.resolve().name
        ask = {"model": name, "temperature": 0, "max_tokens": options.tokens, "stream": True}
        ask["stream_options"] = {"include_usage": True}
        server.answers("/v1/completions", {**ask, "prompt": PROMPTS[0]})
        outcomes, changes, others, held = soak(server, ask, options.clients, options.others, options.seconds)
        _, metrics = server.call("GET", "/metrics")
    expected = references(options.model, options.tokens)
    table = pd.DataFrame([outcome.__dict__ for outcome in outcomes]).assign(
        wrong=[outcome.preference == "quality" and differs(outcome, expected) for outcome in outcomes]
    )
    lost = (table["status"] != 200) | (table["tokens"] < options.tokens)
    refused = sum(change.status != 200 for change in changes)
    print(f"{len(table)} responses to {options.clients} clients, {len(changes)} changes of budget ({refused} refused)")
    checked = int((table["preference"] == "quality").sum())
    print(f"lost {int(lost.sum())}, wrong {int(table['wrong'].sum())} of {checked} that can be checked")
    for label, values in (
        ("to the first token", table["first_token_s"]),
        ("whole answer", table["seconds"]),
        ("change of budget, until answered", pd.Series([change.seconds for change in changes])),
    ):
        print(f"{label}:", ", ".join(f"p{q} {np.percentile(values, q) * 1e3:.0f} ms" for q in (50, 90, 95, 99, 100)))
    name = "lumoe_reconfiguration_freed_seconds"
    values = {line.split()[0]: float(line.split()[1]) for line in metrics.splitlines() if line.startswith(name)}
    total, count = values[f"{name}_sum"], values[f"{name}_count"]
    print(f"memory given up was back after {total / count * 1e3:.1f} ms in the mean of {count:.0f} changes of plan")
    odd = [other for other in others if other.status not in other.right]
    print(f"{len(others)} other requests, {len(odd)} answered with another status than is right", *odd[:5], sep="\n  ")
    leaks = report_memory(held, options.seconds, options.leak)
    write_csv(options.output, table.drop(columns="text"))
    write_csv(options.output.with_name(f"{options.output.stem}-memory.csv"), held)
    sys.exit(int(lost.any() or table["wrong"].any() or refused > 0 or bool(odd) or leaks))


def report_memory(held: pd.DataFrame, seconds: float, leak_mib: float) -> bool:
    """Print what the server's process held; return whether its memory grew faster than `leak_mib` MiB a minute."""
    per_minute, half = (value / 2**20 for value in slope(held, len(BUDGETS) * 1.0, min(60.0, seconds / 4)))
    resident = held["resident_bytes"] / 2**20
    print(
        f"resident memory {resident.min():.0f} to {resident.max():.0f} MiB, slope {per_minute:+.2f} MiB/min "
        f"(95 %: {per_minute - half:+.2f} to {per_minute + half:+.2f}); "
        f"files at most {held['files'].max()}, at the end {held['files'].iloc[-1]}; "
        f"threads {held['threads'].min()} to {held['threads'].max()}"
    )
    return per_minute - half > leak_mib


def soak(
    server: Served, ask: dict[str, object], clients: int, others: int, seconds: float
) -> tuple[list[Outcome], list[Change], list[Other], pd.DataFrame]:
    """Let all clients ask until the time is up while the budget changes every second."""
    stop, began = Event(), time.monotonic()

    def client(number: int) -> list[Outcome]:
        choose, done = random.Random(number), []
        while not stop.is_set():
            at_s = time.monotonic() - began
            turn = int(at_s / TURN_S)
            preference, prompt = ("throughput", "quality")[turn % 2], choose.choice(PROMPTS)
            found = server.stream("/v1/completions", {**ask, "prompt": prompt, "preference": preference})
            # An end of text before the limit is a whole answer.
            tokens = ask["max_tokens"] if found.finish == "stop" else found.usage.get("completion_tokens", 0)
            first = float("nan") if found.first_s is None else found.first_s
            tokens = int(str(tokens))
            done.append(Outcome(at_s, prompt, preference, found.status, first, found.seconds, tokens, found.text))
        return done

    def change() -> list[Change]:
        done: list[Change] = []
        while not stop.wait(1.0):
            budget, asked = BUDGETS[len(done) % len(BUDGETS)], time.perf_counter()
            status, _ = server.call("PUT", "/v1/budget", {"budget": budget})
            done.append(Change(budget, status, time.perf_counter() - asked))
        return done

    with ThreadPoolExecutor(clients + others + 2) as pool:
        changer, watcher = pool.submit(change), pool.submit(watch, server, stop)
        disturbing = [pool.submit(disturb, server, str(ask["model"]), stop, seed) for seed in range(others)]
        asked = [pool.submit(client, number) for number in range(clients)]
        time.sleep(seconds)
        stop.set()
    return (
        [outcome for answers in asked for outcome in answers.result()],
        changer.result(),
        [other for done in disturbing for other in done.result()],
        watcher.result(),
    )


def references(model: Path, tokens: int) -> dict[str, tuple[str, int]]:
    """Return for each prompt the text at 16 bits and the number of characters before its first near tie."""
    tokenizer, engine, found = load_tokenizer(model).backend_tokenizer, Engine.load(model), {}
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        made = engine.generate(ids, tokens)
        logits = engine.logits([*ids, *made.tolist()])[len(ids) - 1 : -1].float()
        best = logits.topk(2, dim=-1).values
        # bfloat16 has 8 bits of mantissa; sums in another order move a logit by a few of its last places.
        close = (best[:, 0] - best[:, 1] < 4 * best[:, 0].abs() / 256).nonzero()
        sure = int(close[0]) if len(close) else tokens
        found[prompt] = tokenizer.decode(made.tolist()), len(tokenizer.decode(made[:sure].tolist()))
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
    parser.add_argument("--others", type=int, default=2, help="clients that do something else")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--leak", type=float, default=1.0, help="MiB per minute of growth that counts as a leak")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    return options


if __name__ == "__main__":
    main()

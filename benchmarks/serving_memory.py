"""Resident memory of a server beside its budget, while the budget goes 100, 60, 30, 100 % and requests run.

    python benchmarks/serving_memory.py --folder build/coding-agent --tokenizer data/models/mini-mixtral \\
        --output build/serving_memory.csv

Model: the random Mixtral of `coding_agent.py`. Clients ask again at once: three for four answers each of 100 tokens to
short prompts, one for 32 tokens to prompts of 1 500. Every prompt is another one.

The measure is VmRSS of the server's one process: its anonymous pages, and the pages of files that it has mapped (the
libraries, each page once). A phase's peak is the kernel's own (VmHWM, set back at the phase's beginning), so nothing
between two samples is missed. A phase begins when its change of budget was answered, but where the budget grows, when
that was asked for.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
from coding_agent import CONTEXT, make_model
from served import Served, free_port, lumoe

from lumoe.files import write_csv
from lumoe.moe.measurement.profile import describe_device

BUDGETS = ("100%", "60%", "30%", "100%")
COLUMNS = ("at_s", "budget", "budget_bytes", "held_bytes", "resident_bytes", "anonymous_bytes", "peak_bytes")
EVERY_S = 0.5
# Bytes that a server may have beside its budget, see docs/serving.md.
ALLOWED_BYTES = 450_000_000
MB = 1_000_000


def resident(process: int) -> dict[str, int]:
    """Return bytes of a process: resident, anonymous among them, and the peak since the last `forget_peak`."""
    status = dict(re.findall(r"^(\w+):\s+(\d+) kB$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE))
    names = {"resident_bytes": "VmRSS", "anonymous_bytes": "RssAnon", "peak_bytes": "VmHWM"}
    return {column: 1024 * int(status[name]) for column, name in names.items()}


def forget_peak(process: int) -> None:
    """Let the peak begin anew, at what is resident now."""
    Path(f"/proc/{process}/clear_refs").write_text("5")


def ask(server: Served, client: int, stop: Event) -> int:
    """Ask again and again until `stop` is set; return the tokens answered.

    Raises:
        RuntimeError: an answer has another status than 200.
    """
    draw, tokens = random.Random(client), 0
    short = {"max_tokens": 100, "n": 4}
    long = {"max_tokens": 32}
    while not stop.is_set():
        size, wish = (1500, long) if client == 0 else (16, short)
        prompt = [draw.randrange(256, 4096) for _ in range(size)]
        body = {"model": "model", "prompt": prompt, "ignore_eos": True, "seed": draw.randrange(1 << 30), **wish}
        status, answer = server.call("POST", "/v1/completions", body)
        if status != 200:
            raise RuntimeError(f"a client was answered with {status}: {answer}")
        tokens += answer["usage"]["completion_tokens"]
    return tokens


def phase(server: Served, budget: str, grows: bool, seconds: float, began: float) -> list[dict[str, Any]]:
    """Change the budget and watch the process for a while; return COLUMNS."""
    process, rows = server.process.pid, []
    if grows:
        forget_peak(process)
    status, state = server.call("PUT", "/v1/budget", {"budget": budget})
    if status != 200:
        raise RuntimeError(f"the budget {budget} was answered with {status}: {state}")
    if not grows:
        forget_peak(process)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = server.call("GET", "/v1/budget")[1]
        held = {"budget_bytes": state["budget_bytes"], "held_bytes": state["bytes_fast"] + state["bytes_kv"]}
        rows.append({"at_s": time.monotonic() - began, "budget": budget, **held, **resident(process)})
        time.sleep(EVERY_S)
    return rows


def watched(server: Served, seconds: float) -> pd.DataFrame:
    """Return COLUMNS over the trace, with clients that ask all the while."""
    stop, rows, began = Event(), [], time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(ask, server, client, stop) for client in range(4)]
        try:
            for number, budget in enumerate(BUDGETS):
                found = phase(server, budget, number == 0 or budget == "100%", seconds, began)
                rows += [{"phase": number + 1, **row} for row in found]
        finally:
            stop.set()
        tokens = sum(client.result() for client in clients)
    print(f"{tokens / (time.monotonic() - began):.0f} tokens/s over all phases")
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="of the model; it is made there if there is none")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a model folder with a byte-level tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="table of the samples")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a phase")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], help="of `lumoe serve`, such as --option=--kv-bits=8")
    options = parser.parse_args()
    model, port = make_model(options.folder, options.tokenizer).resolve(), free_port()
    command = lumoe(model, port, options.threads, "--name", "model", "--context", str(CONTEXT // 4), *options.option)
    with Served(command, port, options.threads) as server:
        server.answers("/v1/completions", {"model": "model", "prompt": "Return", "max_tokens": 2, "stream": True})
        while not server.call("GET", "/v1/budget")[1]["settled"]:
            time.sleep(0.1)
        print(f"at rest: {(resident(server.process.pid)['resident_bytes']) / MB:.0f} MB")
        table = watched(server, options.seconds)
    write_csv(options.output, table, ("phase", *COLUMNS))
    print(describe_device())
    print(
        f"{'phase':>5} {'budget':>7} {'MB':>7} {'held, MB':>9} {'resident, MB':>13} {'peak, MB':>9} {'over budget':>12}"
    )
    for number, rows in table.groupby("phase"):
        budget, peak = rows["budget_bytes"].max(), rows["peak_bytes"].max()
        print(
            f"{number:5} {rows['budget'].iloc[0]:>7} {budget / MB:7.1f} {rows['held_bytes'].max() / MB:9.1f} "
            f"{rows['resident_bytes'].median() / MB:13.1f} {peak / MB:9.1f} {(peak - budget) / MB:12.1f}"
        )
    over = (table["peak_bytes"] - table["budget_bytes"]).max()
    print(f"{over / MB:.1f} MB over the budget at most, {ALLOWED_BYTES / MB:.0f} are allowed")


if __name__ == "__main__":
    main()

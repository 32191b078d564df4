"""Time to first token and tokens/s at 1, 4 and 16 clients, and what the server costs over the bare engine.

    python benchmarks/serving.py --model data/models/mini-mixtral --output results/benchmarks/serving.csv

Peers serve the same checkpoint over the same interface, one server after another, each in a process of its own:
`transformers serve` (bfloat16, with its continuous batching) and, where llama-cpp-python is installed and `--gguf`
names the converted model, `llama_cpp.server`. A contender that does not start is reported as not run, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd

from lumoe.files import write_csv
from lumoe.moe.profile import describe_device
from lumoe.moe.serve.run import listen

COLUMNS = (
    "contender",
    "clients",
    "tokens_per_s",
    "first_token_s_p50",
    "first_token_s_p95",
    "requests",
    "basis",
    "note",
)
PROMPT = "Parameters\n----------\nx : array_like\n    Input data, of shape"


def commands(options: argparse.Namespace, port: int) -> dict[str, tuple[list[str], str, str]]:
    """Contender -> (command, path that streams, name of the model)."""
    python, model = sys.executable, options.model.resolve()
    lumoe = [python, "-c", "from lumoe.cli import main; main()", "serve", "--model", str(model), "--port", str(port),
             "--threads", str(options.threads)]  # fmt: skip
    peer = [str(Path(python).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port),
            "--device", "cpu", "--torch-dtype", "bfloat16", "--force-model", str(model)]  # fmt: skip
    found = {
        "lumoe 16 bits": (lumoe, "/v1/chat/completions", model.name),
        "transformers serve": (peer, "/v1/chat/completions", str(model)),
        "transformers serve, continuous batching": (
            [*peer, "--continuous-batching", "--attn-implementation", "sdpa_paged"], "/v1/chat/completions", str(model),
        ),
    }  # fmt: skip
    if options.quantized:
        small = [*lumoe, "--quantized", str(options.quantized), "--budget", options.budget]
        found["lumoe 4 bits"] = (small, "/v1/chat/completions", model.name)
    if options.gguf:
        llama = [python, "-m", "llama_cpp.server", "--model", str(options.gguf), "--host", "127.0.0.1",
                 "--port", str(port), "--n_threads", str(options.threads)]  # fmt: skip
        found["llama_cpp.server"] = (llama, "/v1/chat/completions", str(options.gguf))
    return found


@contextmanager
def served(command: list[str], port: int, threads: int, path: str, model: str) -> Iterator[str]:
    """Start a server and wait until it has answered once."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as server:
        url = f"http://127.0.0.1:{port}{path}"
        try:
            for _ in range(180):
                if server.poll() is not None:
                    said = server.stderr.read().decode(errors="replace") if server.stderr else ""
                    raise RuntimeError((said.strip().splitlines() or ["ended at once"])[-1][:200])
                try:
                    ask(url, model, 2)
                    break
                except (httpx.HTTPError, KeyError, ValueError):
                    time.sleep(1)
            else:
                raise RuntimeError("no answer within three minutes")
            yield url
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                server.kill()


def ask(url: str, model: str, tokens: int) -> tuple[float, float, int]:
    """Stream one answer; return seconds to the first text, seconds in all, and the number of chunks with text."""
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": tokens, "temperature": 0,
            "stream": True}  # fmt: skip
    began, first, chunks = time.perf_counter(), 0.0, 0
    with httpx.stream("POST", url, json=body, timeout=120, trust_env=False) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
            if (choices[0].get("delta") or {}).get("content"):
                first = first or time.perf_counter() - began
                chunks += 1
    return first, time.perf_counter() - began, chunks


def load(url: str, model: str, clients: int, tokens: int, rounds: int) -> tuple[float, list[float]]:
    """Let `clients` ask `rounds` times each; return tokens/s of all together and the times to first token.

    Every answer is taken to have `tokens` tokens: greedy decoding of one prompt gives each the same.
    """
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda _: ask(url, model, tokens), range(clients * rounds)))
    seconds = time.perf_counter() - began
    if min(chunks for _, _, chunks in answers) < tokens // 4:
        raise RuntimeError("an answer ended early: the count of tokens would be wrong")
    return clients * rounds * tokens / seconds, [first for first, _, _ in answers]


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Time every contender at every number of clients."""
    rows = []
    for name in commands(options, 0):
        with listen("127.0.0.1", 0) as probe:
            port = probe.getsockname()[1]
        command, path, model = commands(options, port)[name]
        try:
            with served(command, port, options.threads, path, model) as url:
                for clients in options.clients:
                    speed, firsts = load(url, model, clients, options.tokens, options.rounds)
                    row = [name, clients, speed, *np.percentile(firsts, [50, 95]), len(firsts), "measured", ""]
                    rows.append(dict(zip(COLUMNS, row, strict=True)))
                    print(f"{name:>40} {clients:>3} clients {speed:8.1f} tokens/s, first {firsts[0]:.3f} s", flush=True)
        except (RuntimeError, httpx.HTTPError, OSError) as error:
            rows.append({"contender": name, "basis": "not-run", "note": " ".join(str(error).split())})
            print(f"{name:>40} not run: {error}", flush=True)
    return pd.DataFrame(rows).assign(device=describe_device(), threads=options.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--quantized", type=Path)
    parser.add_argument("--budget", default="60%", help="of the contender with quantised experts")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2, help="requests per client")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    write_csv(options.output, measure(options), COLUMNS)


if __name__ == "__main__":
    main()

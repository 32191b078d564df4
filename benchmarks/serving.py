"""Time to first token and tokens/s at 1, 4 and 16 clients, beside the servers of llama.cpp and transformers.

    python -m venv build/peers && build/peers/bin/pip install 'llama-cpp-python[server]'
    python benchmarks/gguf_mixtral.py --model data/models/mini-mixtral --type f16 --output build/mini-f16.gguf
    python benchmarks/serving.py --model data/models/mini-mixtral --gguf build/mini-f16.gguf \\
        --llama-python build/peers/bin/python --output results/benchmarks/serving.csv

All contenders serve the same weights over the same interface, each in a process of its own, all with the same number of
threads. All are started first; then rounds go through the contenders in turn, and whoever is not being timed is stopped
(SIGSTOP), so that a drift of the machine meets all of them alike. In a round every client asks, streams and asks again
until the time is up; the last answers are waited for. Prompts differ from their first word on, so that no cache of
prefixes answers. A contender that does not start is reported as not run, with the reason.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from served import Answer, Served, free_port, lumoe

from lumoe.files import write_csv
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.measurement.profile import describe_device

COLUMNS = (
    "contender",
    "clients",
    "tokens_per_s",
    "tokens_per_s_min",
    "tokens_per_s_max",
    "ratio",
    "first_token_s_p50",
    "first_token_s_p95",
    "requests",
    "basis",
    "note",
)
OWN = "lumoe, 16 bits"
PATH = "/v1/chat/completions"
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True)
class Contender:
    """A server: its command, given a port, and the name of its model."""

    command: Callable[[int], list[str]]
    model: str


def contenders(options: argparse.Namespace, folder: Path) -> dict[str, Contender]:
    """Return every contender that the options name; this package's server at 16 bits is the first.

    Args:
        folder: an empty one, for what a contender needs beside the model.
    """
    model, threads = options.model.resolve(), options.threads
    linked = for_transformers(model, folder)
    found = {OWN: Contender(lambda port: lumoe(model, port, threads), model.name)}
    if options.quantized:
        small = ["--quantized", str(options.quantized), "--budget", options.budget]
        found[f"lumoe, budget {options.budget}"] = Contender(
            lambda port: lumoe(model, port, threads, *small), model.name
        )
    for path in options.gguf:
        found[f"llama_cpp.server, {path.stem}"] = Contender(
            lambda port, path=path: llama_cpp(options.llama_python, path, port, threads), "llama"
        )
    found["transformers serve"] = Contender(lambda port: transformers(linked, port), str(linked))
    batching = ["--continuous-batching", "--attn-implementation", "sdpa_paged"]
    found["transformers serve, continuous batching"] = Contender(
        lambda port: transformers(linked, port, *batching), str(linked)
    )
    return found


def llama_cpp(python: Path, path: Path, port: int, threads: int) -> list[str]:
    """`llama_cpp.server`: one request at a time; by default a new one would cut the running one off."""
    return [str(python), "-m", "llama_cpp.server", "--model", str(path), "--model_alias", "llama", "--n_ctx", "256",
            "--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "False",
            "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip


def transformers(model: Path, port: int, *options: str) -> list[str]:
    """`transformers serve` in bfloat16, the type of the checkpoint."""
    program = Path(lumoe(model, 0, 1)[0]).parent / "transformers"
    return [str(program), "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--torch-dtype",
            "bfloat16", "--force-model", str(model), *options]  # fmt: skip


def for_transformers(model: Path, folder: Path) -> Path:
    """Return a copy of `model` (links) whose tokenizer names its outputs: else `generate` is given `token_type_ids`."""
    for path in model.iterdir():
        if path.name != TOKENIZER_CONFIG:
            (folder / path.name).symlink_to(path)
    settings = json.loads((model / TOKENIZER_CONFIG).read_text())
    settings.setdefault("model_input_names", ["input_ids", "attention_mask"])
    (folder / TOKENIZER_CONFIG).write_text(json.dumps(settings))
    return folder


class Prompts:
    """Prompts of 16 to 24 words of prose, no two of which begin alike."""

    def __init__(self) -> None:
        self._words = (np.einsum.__doc__ or "").split()
        self._number = count()

    def next(self) -> str:
        """Return another one."""
        number = next(self._number)
        begin = 7 * number % (len(self._words) - 24)
        return f"{number} " + " ".join(self._words[begin : begin + 16 + number % 9])


def load(ask: Callable[[], Answer], clients: int, seconds: float) -> tuple[list[Answer], float]:
    """Let `clients` ask again and again for `seconds`; return their answers and how long that took to the last one."""
    began = time.perf_counter()

    def client() -> list[Answer]:
        answers = []
        while time.perf_counter() - began < seconds:
            answers.append(ask())
        return answers

    with ThreadPoolExecutor(clients) as pool:
        tasks = [pool.submit(client) for _ in range(clients)]
    answers = [answer for task in tasks for answer in task.result()]
    return answers, time.perf_counter() - began


def measure(options: argparse.Namespace) -> pd.DataFrame:
    """Time every contender at every number of clients."""
    tokenizer, prompts = load_tokenizer(options.model).backend_tokenizer, Prompts()
    body: dict[str, Any] = {"max_tokens": options.tokens, "temperature": 0, "stream": True}
    rounds: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running: dict[str, tuple[Served, Callable[[], Answer]]] = {}
        for name, contender in contenders(options, folder).items():
            port = free_port()
            server = stack.enter_context(Served(contender.command(port), port, options.threads))

            def ask(server: Served = server, model: str = contender.model) -> Answer:
                message = {"role": "user", "content": prompts.next()}
                return server.stream(PATH, {**body, "model": model, "messages": [message]})

            try:
                message = {"role": "user", "content": "Return the"}
                server.answers(PATH, {**body, "model": contender.model, "messages": [message], "max_tokens": 2})
                load(ask, max(options.clients), 0.1)
            except (RuntimeError, OSError) as error:
                failed[name] = " ".join(str(error).split())
                continue
            server.pause()
            running[name] = server, ask
            print(f"{name:>40} has answered", flush=True)
        for _ in range(options.rounds):
            for name, (server, ask) in running.items():
                server.resume()
                for clients in options.clients:
                    answers, seconds = load(ask, clients, options.seconds)
                    # Not every server reports usage in a stream: all answers are counted by one tokenizer.
                    tokens = sum(len(tokenizer.encode(answer.text).ids) for answer in answers)
                    wrong = [answer for answer in answers if answer.status != 200 or answer.first_s is None]
                    if wrong:
                        raise RuntimeError(f"{name}: {len(wrong)} of {len(answers)} answers were none")
                    firsts = [answer.first_s for answer in answers]
                    rounds.append({"contender": name, "clients": clients, "speed": tokens / seconds, "firsts": firsts})
                    print(f"{name:>40} {clients:>3} clients {tokens / seconds:8.1f} tokens/s", flush=True)
                server.pause()
    return summarize(rounds, failed).assign(device=describe_device(), threads=options.threads)


def summarize(rounds: list[dict[str, Any]], failed: dict[str, str]) -> pd.DataFrame:
    """Return medians over rounds; `ratio` is this package's tokens/s at 16 bits over the contender's."""
    rows: list[dict[str, Any]] = []
    for name, clients in dict.fromkeys((entry["contender"], entry["clients"]) for entry in rounds):
        mine = [entry for entry in rounds if (entry["contender"], entry["clients"]) == (name, clients)]
        speeds = [entry["speed"] for entry in mine]
        firsts = np.concatenate([entry["firsts"] for entry in mine])
        own = [
            entry["speed"] for entry in rounds if (entry["contender"], entry["clients"]) == ("lumoe, 16 bits", clients)
        ]
        median = statistics.median(speeds)
        ratio = statistics.median(own) / median if own else float("nan")
        values = [name, clients, median, min(speeds), max(speeds), ratio, *np.percentile(firsts, [50, 95]), len(firsts)]
        rows.append(dict(zip(COLUMNS, [*values, "measured", ""], strict=True)))
    rows += [{"contender": name, "basis": "not-run", "note": note} for name, note in failed.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--quantized", type=Path, help="adds this package's server with 4-bit experts")
    parser.add_argument("--budget", default="30%", help="of that contender")
    parser.add_argument("--gguf", type=Path, nargs="*", default=[], help="the model as files of llama.cpp")
    parser.add_argument(
        "--llama-python", type=Path, help="Python that has llama-cpp-python[server]; this one by default"
    )
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=48, help="of an answer, at most")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round of one contender at one load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.llama_python = options.llama_python or Path(lumoe(options.model, 0, 1)[0])
    table = measure(options)
    write_csv(options.output, table)
    print(table.drop(columns=["device", "threads", "basis", "note"]).to_string(index=False, float_format="%.3f"))
    for row in table[table["basis"] == "not-run"].itertuples():
        print(f"{row.contender}: not run ({row.note})")


if __name__ == "__main__":
    main()

"""One token of the default model, where calls cost more than arithmetic: this engine, transformers and llama.cpp.

    python -m venv build/llama && build/llama/bin/pip install xllamacpp
    python benchmarks/small_model.py --folder build/small-model --llama-python build/llama/bin/python \\
        --output results/benchmarks/small_model.csv

Contenders are processes of their own that are in memory together and take turns; times are those of a token after a
prompt of 16, the choice of the likeliest included, and ratios are of medians over rounds. llama.cpp has the same
weights as a GGUF file. Without --llama-python it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import torch
from against_llama import Llama, Ours, quantized, started
from gguf_mixtral import convert

from lumoe.files import write_csv

OURS = Path(__file__).with_name("against_llama.py")
PROMPT, STEPS = 16, 64
COLUMNS = ("contender", "ms", "ms_min", "ms_max", "times_of_first", "rounds", "threads", "device", "basis")


def answer(model: Path, threads: int) -> None:
    """Be a contender: transformers in bfloat16."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    peer = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, use_safetensors=True).eval()
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        with torch.inference_mode():
            found = peer(torch.tensor([task["ids"]]), use_cache=True)
            began = time.perf_counter()
            for _ in range(task["steps"]):
                token = found.logits[:, -1].argmax(-1, keepdim=True)
                found = peer(token, past_key_values=found.past_key_values, use_cache=True)
        print(json.dumps(1e3 * (time.perf_counter() - began) / task["steps"]), flush=True)


def contenders(options: argparse.Namespace) -> list[Ours | Llama]:
    """Start all of them."""
    options.folder.mkdir(parents=True, exist_ok=True)
    model, threads = options.model, options.threads
    ours: list[object] = [sys.executable, OURS, "--run", "--model", model, "--threads", threads]
    peer: list[object] = [sys.executable, __file__, "--run", "--model", model, "--threads", threads]
    experts = quantized(model, options.folder / "int4")
    running: list[Ours | Llama] = [
        started("lumoe, 16 bits", ours),
        started("lumoe, experts and projections at 4 bits", [*ours, "--quantized", experts]),
        started("transformers, bfloat16", peer),
    ]
    for kind in ("bf16", "q4_0") if options.llama_python else ():
        file = options.folder / f"{kind}.gguf"
        if not file.is_file():
            convert(model, file, kind)
        lines = Path(__file__).with_name("llama_lines.py")
        running.append(Llama([options.llama_python, lines, file, 256, threads], subprocess.DEVNULL))
        running[-1].name = f"llama.cpp, {kind.upper()}"
    for contender in running:
        if not contender.greeting.startswith("ready"):
            raise SystemExit(f"{contender.name}: did not start")
    return running


def compare(options: argparse.Namespace) -> pd.DataFrame:
    """Return COLUMNS."""
    from lumoe.moe.measurement.profile import describe_device

    running = contenders(options)
    device, draw = describe_device().rsplit(",", 1)[0], torch.Generator().manual_seed(0)
    found: dict[str, list[float]] = {contender.name: [] for contender in running}
    for repeat in range(options.repeats + 1):
        ids = torch.randint(3, 4000, (PROMPT,), generator=draw).tolist()
        for contender in running:
            ms = contender.ms(ids, STEPS)
            if repeat:  # the first round warms up
                found[contender.name].append(ms)
    for contender in running:
        contender.close()
    rows, first = [], statistics.median(found[running[0].name])
    for name, times in found.items():
        middle = statistics.median(times)
        print(f"{name:42} {middle:6.2f} ms ({min(times):.2f} .. {max(times):.2f})  {middle / first:5.2f}", flush=True)
        spread = (middle, min(times), max(times), middle / first)
        rows.append((name, *spread, len(times), options.threads, device, "measured"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/mini-mixtral"), help="a small Mixtral")
    parser.add_argument("--folder", type=Path, help="where its other forms are made")
    parser.add_argument("--llama-python", type=Path, help="Python that has xllamacpp")
    parser.add_argument("--output", type=Path, help="the table")
    parser.add_argument("--repeats", type=int, default=15, help="rounds that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        answer(options.model, options.threads)
        return
    if not (options.folder and options.output):
        parser.error("give --folder and --output")
    write_csv(options.output, compare(options), COLUMNS)


if __name__ == "__main__":
    main()

"""One GGUF file, two programs: decoding and prefill by this engine and by llama.cpp, taking turns.

    python -m venv build/llama && build/llama/bin/pip install xllamacpp
    python benchmarks/against_llama.py --folder build/against-llama --llama-python build/llama/bin/python \\
        --output results/benchmarks/against_llama.csv

The file is a Mixtral in Q4_0 throughout, of true widths and few layers (`random_gguf.py`). `mixtral` has two layers of
Mixtral 8x7B's widths, `fine` eight layers of 64 small experts, 8 of them a token, as OLMoE's. This engine computes from
the file's codes, and with `--own` from its own 4-bit format as well, made of them.

Contenders are processes of their own that are in memory together and take turns; ratios are of medians over rounds. The
floor of decoding is the bytes that a token needs over what a bare read reaches here.
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

import numpy as np
import pandas as pd
import torch
from lines import Process
from random_gguf import SHAPES, VOCABULARY, write_model

from lumoe.files import write_csv

STEPS, PROMPT = 16, 16
MODELS = ("mixtral", "fine")
COLUMNS = (
    "shape", "contender", "task", "ms", "ms_min", "ms_max", "times_of_llama", "floor_ms", "rounds", "threads",
    "instructions", "device", "versions", "basis",
)  # fmt: skip


class Ours(Process):
    """This engine."""

    name: str

    def ms(self, ids: list[int], steps: int) -> float:
        """Return the milliseconds of a prompt, or of each of `steps` tokens after it."""
        return float(self.ask(json.dumps({"ids": ids, "steps": steps})))


class Llama(Process):
    """llama.cpp, which times itself."""

    name = "llama.cpp Q4_0"

    def ms(self, ids: list[int], steps: int) -> float:
        """Return the milliseconds of a prompt, or of each of `steps` tokens after it."""
        answer = self.ask(json.dumps({"prompt": ids, "n_predict": steps + 1, "ignore_eos": True}))
        timings = json.loads(answer)["timings"]
        return float(timings["predicted_ms"] / timings["predicted_n"] if steps else timings["prompt_ms"])


def answer(options: argparse.Namespace) -> None:
    """Be a contender: this engine."""
    import lumoe
    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.planning.plan import Plan

    torch.set_num_threads(options.threads)
    if options.quantized:
        from lumoe.moe.architectures.read import read_architecture
        from lumoe.moe.checkpoint.gguf_file import model_folder

        shape = read_architecture(model_folder(options.model)).plan_shape
        plan = Plan(np.full(shape, 4), np.ones(shape, dtype=bool))
        engine = Engine.load(options.model, options.quantized, plan, non_expert_bits=4)
    else:
        engine = Engine.load(options.model)
    print("ready", lumoe.__version__, flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        ids, steps = torch.tensor([task["ids"]]), task["steps"]
        cache = engine.cache(1, ids.shape[1] + steps)
        began = time.perf_counter()
        token = engine.step(ids, cache)[:, -1].max(-1, keepdim=True).indices
        if steps:
            began = time.perf_counter()
            for _ in range(steps):
                token = engine.step(token, cache)[:, -1].max(-1, keepdim=True).indices
        print(json.dumps(1e3 * (time.perf_counter() - began) / max(steps, 1)), flush=True)


def quantized(model: Path, output: Path) -> Path:
    """Return a folder of the file's experts in this package's own 4-bit format."""
    from lumoe.moe.checkpoint.weights import Checkpoint
    from lumoe.moe.quantization.folder import MANIFEST
    from lumoe.moe.quantization.quantize import Recipe, quantize

    if not (output / MANIFEST).is_file():
        quantize(Checkpoint(model), torch.zeros((1, 16), dtype=torch.int64), output, Recipe("rtn", 4, 64))
    return output


def started(name: str, command: list[object]) -> Ours:
    """Return a contender of this engine."""
    found = Ours(command, subprocess.DEVNULL)
    found.name = name
    return found


def compare(options: argparse.Namespace) -> pd.DataFrame:
    """Return COLUMNS."""
    from kernels import read_gb_per_s

    from lumoe.moe.measurement.profile import describe_device

    device, rows, memory = describe_device().rsplit(",", 1)[0], [], torch.zeros(100 << 20)
    for name in options.shape:
        shape, model = SHAPES[name], options.folder / f"{name}-q4_0.gguf"
        write_model(model, shape)
        ours = [sys.executable, __file__, "--run", "--model", model, "--threads", options.threads]
        peer = [options.llama_python, Path(__file__).with_name("llama_lines.py"), model, 1024, options.threads]
        running: list[Llama | Ours] = [Llama(peer, subprocess.DEVNULL), started("lumoe, the file's codes", ours)]
        if options.own:
            folder = quantized(model, options.folder / f"{name}-int4")
            running.append(started("lumoe, int4", [*ours, "--quantized", folder]))
        for contender in running:
            if not contender.greeting.startswith("ready"):
                raise SystemExit(f"{contender.name}: did not start")
        draw = torch.Generator().manual_seed(0)
        tasks = {"decode": (PROMPT, STEPS), **{f"prefill {size}": (size, 0) for size in options.prefill}}
        found: dict[tuple[str, str], list[float]] = {}
        reads = []
        for repeat in range(options.repeats + 1):
            reads.append(read_gb_per_s(memory))
            for task, (size, steps) in tasks.items():
                ids = torch.randint(3, VOCABULARY, (size,), generator=draw).tolist()
                for contender in running:
                    ms = contender.ms(ids, steps)
                    if repeat:  # the first round warms up
                        found.setdefault((task, contender.name), []).append(ms)
        floor = shape.bytes_of_a_token / statistics.median(reads) / 1e6
        theirs, own = (contender.greeting.removeprefix("ready ") for contender in running[:2])
        versions = f"llama.cpp {theirs}, lumoe {own}"
        for contender in running:
            contender.close()
        for (task, contender), times in found.items():
            middle, peer = statistics.median(times), statistics.median(found[task, Llama.name])
            print(
                f"{name:8} {contender:24} {task:12} {middle:8.2f} ms ({min(times):.2f} .. {max(times):.2f})  "
                f"{middle / peer:5.2f} of llama.cpp" + (f"  floor {floor:.2f}" if task == "decode" else ""),
                flush=True,
            )
            spread = (middle, min(times), max(times), middle / peer, floor if task == "decode" else np.nan)
            machine = (options.threads, os.environ.get("LUMOE_NATIVE") or "all", device, versions)
            rows.append((name, contender, task, *spread, len(times), *machine, "measured"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the files are made (2 GB a shape, 4 with --own)")
    parser.add_argument("--llama-python", type=Path, help="Python that has xllamacpp")
    parser.add_argument("--output", type=Path, help="the table")
    parser.add_argument("--shape", nargs="*", choices=MODELS, default=MODELS)
    parser.add_argument("--own", action="store_true", help="this package's own 4-bit format as well")
    parser.add_argument("--prefill", type=int, nargs="*", default=[16, 256], help="tokens of the timed prefills")
    parser.add_argument("--repeats", type=int, default=5, help="rounds that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quantized", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        answer(options)
        return
    if not (options.folder and options.llama_python and options.output):
        parser.error("give --folder, --llama-python and --output")
    write_csv(options.output, compare(options), COLUMNS)


if __name__ == "__main__":
    main()

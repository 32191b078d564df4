"""Decode and prefill at Mixtral's true width against transformers, accelerate and llama.cpp, in one run.

    python benchmarks/true_width.py --folder build/true-width --output results/benchmarks/true_width.csv

Each contender runs in a process of its own, so that none inherits another's memory. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from lumoe.files import write_csv

PROMPT, STEPS = 16, 8
COLUMNS = ("contender", "task", "seconds", "seconds_min", "seconds_max", "repeats", "threads", "device", "basis")


def contenders() -> dict[str, Callable[[argparse.Namespace], dict[str, list[float]]]]:
    """Name -> what times it; the first word says whose it is."""
    return {
        "lumoe 16-bit resident": lambda a: ours(a, 16, 1.0),
        "lumoe 4-bit resident": lambda a: ours(a, 4, 1.0),
        "lumoe 4-bit resident, torch kernel": lambda a: ours(a, 4, 1.0, native=False),
        "lumoe 16-bit half resident": lambda a: ours(a, 16, 0.5),
        "lumoe 4-bit half resident": lambda a: ours(a, 4, 0.5),
        "transformers bfloat16": lambda a: transformers(a, "bfloat16"),
        "transformers float32": lambda a: transformers(a, "float32"),
        "accelerate bfloat16 half on disk, page cache warm": lambda a: transformers(a, "bfloat16", offload="warm"),
        "accelerate bfloat16 half on disk, page cache dropped": lambda a: transformers(a, "bfloat16", offload="cold"),
        "llama.cpp Q4_0": llama_cpp,
    }


def ours(arguments: argparse.Namespace, bits: int, resident: float, native: bool = True) -> dict[str, list[float]]:
    """Time the engine with every expert at `bits` and a share of each layer's experts resident."""
    import numpy as np
    import torch

    from lumoe.moe.engine import Engine
    from lumoe.moe.plan import Plan

    model, quantized = paths(arguments)
    layers, experts = 2, 8
    plan = Plan(np.full((layers, experts), bits), np.tile(np.arange(experts) < resident * experts, (layers, 1)))
    engine = Engine.load(model, quantized, plan, native=native)
    assert engine.store.resident().sum() == plan.resident_experts

    def decode(ids: torch.Tensor, steps: int) -> list[float]:
        cache = engine.cache(1, ids.shape[1] + steps)
        token = engine.step(ids, cache)[:, -1].argmax(-1, keepdim=True)
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            token = engine.step(token, cache)[:, -1].argmax(-1, keepdim=True)
            times.append(time.perf_counter() - began)
        return times

    def prefill(ids: torch.Tensor) -> None:
        engine.step(ids, engine.cache(*ids.shape))

    return tasks(decode, prefill, arguments)


def transformers(arguments: argparse.Namespace, dtype: str, offload: str | None = None) -> dict[str, list[float]]:
    """Time transformers' eager Mixtral; `offload` puts half of each layer's experts on disk through accelerate."""
    import torch
    from transformers import AutoModelForCausalLM

    model, _ = paths(arguments)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    folder = model.parent / "offload"
    if offload:
        from accelerate import disk_offload

        for layer_index, layer in enumerate(network.model.layers):
            experts = layer.block_sparse_moe.experts
            for index in range(len(experts) // 2, len(experts)):
                disk_offload(experts[index], folder / f"{layer_index}-{index}", torch.device("cpu"))

    def drop() -> None:
        if offload == "cold":
            for path in folder.rglob("*.dat"):
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)

    @torch.inference_mode()
    def decode(ids: torch.Tensor, steps: int) -> list[float]:
        out = network(ids, use_cache=True)
        times = []
        for _ in range(steps):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            drop()
            began = time.perf_counter()
            out = network(token, past_key_values=out.past_key_values, use_cache=True)
            times.append(time.perf_counter() - began)
        return times

    @torch.inference_mode()
    def prefill(ids: torch.Tensor) -> None:
        drop()
        network(ids, use_cache=True, logits_to_keep=1)

    return tasks(decode, prefill, arguments)


def llama_cpp(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Time llama.cpp on a Q4_0 file of the same shape (`--gguf`), if both are there."""
    from llama_cpp import Llama  # an optional extra: its build takes long

    if arguments.gguf is None:
        raise RuntimeError("give --gguf: the model converted by llama.cpp's own script and quantised to Q4_0")
    model = Llama(str(arguments.gguf), n_ctx=512, n_threads=arguments.threads, verbose=False)

    def decode(ids: object, steps: int) -> list[float]:
        model.reset()
        model.eval(list(range(3, 3 + PROMPT)))
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            model.eval([5])
            times.append(time.perf_counter() - began)
        return times

    def prefill(ids: object) -> None:
        model.reset()
        model.eval(list(range(3, 3 + ids.shape[1])))  # type: ignore[attr-defined]

    return tasks(decode, prefill, arguments)


def tasks(decode: Callable, prefill: Callable, arguments: argparse.Namespace) -> dict[str, list[float]]:  # type: ignore[type-arg]
    """Run decode and the prefills `--repeats` times after a warm-up; return the seconds of each."""
    import torch

    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 30000, (1, size), generator=generator) for size in arguments.prefill]
    short = torch.randint(3, 30000, (1, PROMPT), generator=generator)
    decode(short, 2)
    found: dict[str, list[float]] = {"decode": [], **{f"prefill {size}": [] for size in arguments.prefill}}
    for _ in range(arguments.repeats):
        found["decode"] += decode(short, STEPS)
        for ids in prompts:
            began = time.perf_counter()
            prefill(ids)
            found[f"prefill {ids.shape[1]}"].append(time.perf_counter() - began)
    return found


def paths(arguments: argparse.Namespace) -> tuple[Path, Path]:
    from true_width_model import build

    return build(arguments.folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the model is made (9 GB)")
    parser.add_argument("--output", type=Path, required=True, help="the table")
    parser.add_argument("--gguf", type=Path, help="the model as a llama.cpp Q4_0 file")
    parser.add_argument("--only", nargs="*", help="contenders whose names begin so")
    parser.add_argument("--prefill", type=int, nargs="*", default=[16, 256], help="tokens of the timed prefills")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--run", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        import torch

        torch.set_num_threads(arguments.threads)
        print(json.dumps(contenders()[arguments.run](arguments)))
        return
    paths(arguments)
    write_csv(arguments.output, compare(arguments), COLUMNS)


def compare(arguments: argparse.Namespace) -> pd.DataFrame:
    """Run every contender in turn; one that cannot run is named and left out."""
    from lumoe.moe.profile import describe_device

    rows = []
    for name in contenders():
        if arguments.only and not name.startswith(tuple(arguments.only)):
            continue
        command = [sys.executable, *sys.argv, "--run", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: not run ({(done.stderr.strip().splitlines() or ['no message'])[-1]})", file=sys.stderr)
            continue
        for task, times in json.loads(done.stdout.splitlines()[-1]).items():
            middle = statistics.median(times)
            print(f"{name:52} {task:12} {middle:8.4f} s  ({min(times):.4f} .. {max(times):.4f})", flush=True)
            device = describe_device().rsplit(",", 1)[0]
            rows.append((name, task, middle, min(times), max(times), len(times), arguments.threads, device, "measured"))
    return pd.DataFrame(rows, columns=list(COLUMNS))


if __name__ == "__main__":
    main()

"""What `true_width.py` times: this package's engine in several configurations, and its peers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from true_width_model import build

PROMPT, STEPS = 16, 8
LAYERS, EXPERTS = 2, 8


class Timed(NamedTuple):
    """What a loaded model can do: seconds of each of `steps` decode steps after a prompt, and a prefill to be timed."""

    decode: Callable[[torch.Tensor, int], list[float]]
    prefill: Callable[[torch.Tensor], None]


def ours(arguments: argparse.Namespace, bits: int, resident: float, **options: Any) -> Timed:
    """The engine with every expert at `bits` and a share of each layer's experts resident."""
    import numpy as np

    from lumoe.moe.engine.engine import Engine
    from lumoe.moe.planning.plan import Plan

    model, quantized = build(arguments.folder)
    near = np.tile(np.arange(EXPERTS) < resident * EXPERTS, (LAYERS, 1))
    plan = Plan(np.full((LAYERS, EXPERTS), bits), near)
    engine = Engine.load(model, quantized, plan, **options)
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

    return Timed(decode, prefill)


def transformers(arguments: argparse.Namespace, dtype: str, offload: str | None = None) -> Timed:
    """transformers' eager Mixtral; `offload` puts half of each layer's experts on disk through accelerate."""
    from transformers import AutoModelForCausalLM

    model, _ = build(arguments.folder)
    network = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype), use_safetensors=True).eval()
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

    return Timed(decode, prefill)


def llama_cpp(arguments: argparse.Namespace) -> Timed:
    """llama.cpp on a Q4_0 file of the same model (`--gguf`), if both are there."""
    from llama_cpp import Llama  # an optional extra: its build takes long

    if arguments.gguf is None:
        raise RuntimeError("give --gguf: the model as `benchmarks/gguf_mixtral.py` converts it")
    threads = arguments.threads
    model = Llama(str(arguments.gguf), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)

    def decode(ids: torch.Tensor, steps: int) -> list[float]:
        model.reset()
        model.eval(ids[0].tolist())
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            model.eval([5])
            times.append(time.perf_counter() - began)
        return times

    def prefill(ids: torch.Tensor) -> None:
        model.reset()
        model.eval(ids[0].tolist())

    return Timed(decode, prefill)


CONTENDERS: dict[str, Callable[[argparse.Namespace], Timed]] = {
    "lumoe 4-bit": lambda a: ours(a, 4, 1.0),
    "lumoe 4-bit, projections too": lambda a: ours(a, 4, 1.0, non_expert_bits=4),
    "lumoe 4-bit, torch's kernels": lambda a: ours(a, 4, 1.0, native=False),
    "lumoe 16-bit": lambda a: ours(a, 16, 1.0),
    "transformers bfloat16": lambda a: transformers(a, "bfloat16"),
    "transformers float32": lambda a: transformers(a, "float32"),
    "llama.cpp Q4_0": llama_cpp,
    "lumoe 16-bit, half resident": lambda a: ours(a, 16, 0.5),
    "lumoe 4-bit, half resident": lambda a: ours(a, 4, 0.5),
    "accelerate bfloat16, half on disk, page cache warm": lambda a: transformers(a, "bfloat16", offload="warm"),
    "accelerate bfloat16, half on disk, page cache dropped": lambda a: transformers(a, "bfloat16", offload="cold"),
}
# Contenders that are in memory together; the first is the one that the others are multiples of.
HEATS = {
    "4-bit": (
        "lumoe 4-bit",
        "lumoe 4-bit, projections too",
        "lumoe 4-bit, torch's kernels",
        "transformers bfloat16",
        "llama.cpp Q4_0",
    ),
    "16-bit": ("lumoe 16-bit", "transformers bfloat16"),
    "float32": ("lumoe 4-bit", "transformers float32"),
    "half": (
        "lumoe 16-bit, half resident",
        "lumoe 4-bit, half resident",
        "accelerate bfloat16, half on disk, page cache warm",
    ),
    "half-cold": (
        "lumoe 16-bit, half resident",
        "lumoe 4-bit, half resident",
        "accelerate bfloat16, half on disk, page cache dropped",
    ),
}


def answer(arguments: argparse.Namespace) -> None:
    """Load the contender `--run`, say "ready", then time each task that standard input names."""
    torch.set_num_threads(arguments.threads)
    timed = CONTENDERS[arguments.run](arguments)
    generator = torch.Generator().manual_seed(0)
    prompts = {size: torch.randint(3, 30000, (1, size), generator=generator) for size in (PROMPT, *arguments.prefill)}
    print("ready", flush=True)
    for line in sys.stdin:
        task = line.strip()
        if task == "decode":
            times = timed.decode(prompts[PROMPT], STEPS)
        else:
            ids = prompts[int(task.split()[1])]
            began = time.perf_counter()
            timed.prefill(ids)
            times = [time.perf_counter() - began]
        print(json.dumps(times), flush=True)

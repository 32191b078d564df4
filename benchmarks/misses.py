"""What a miss costs: decoding with half of each layer's experts on disk, beside the disk's own time for what was read.

    python benchmarks/misses.py --folder build/true-width --output build/misses.csv

One model of Mixtral's widths (`true_width_model.py`) under several ways to read and to keep. They take turns on the
same prompts, and after each turn as many bytes of experts are read with nothing else going on. `added` is what a step
takes longer than with every expert resident, in the same round, over the time of that: what of the reads is not hidden.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from true_width_model import build

from lumoe.files import write_csv
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import OpenedModel, open_model
from lumoe.moe.offload.file_tier import FileTier
from lumoe.moe.planning.caching import Caching
from lumoe.moe.planning.plan import Plan

PROMPT = 16
# Readers that share an expert, and what is kept and read ahead.
WAYS = (
    (1, Caching()), (2, Caching()), (4, Caching()), (1, Caching(prefetch=1)), (1, Caching(prefetch=2)),
    (1, Caching("lru", prefetch=0)), (1, Caching("lfru", prefetch=0)), (1, Caching("lfru", prefetch=2)),
)  # fmt: skip


def engines(model: OpenedModel, plan: Plan) -> list[Engine]:
    """One engine for each way, all on the same weights outside the experts; each expert is laid out before."""
    for layer, expert in np.ndindex(plan.shape):
        model.source.record(layer, expert, int(plan.bits[layer, expert]))
    return [
        Engine(replace(model, tier=FileTier(readers=readers), config=replace(model.config, policy=caching)), plan)
        for readers, caching in WAYS
    ]


def bare(engine: Engine, nbytes: int, generator: np.random.Generator) -> float:
    """Return the seconds that reading `nbytes` of experts takes, one after another, while nothing computes."""
    source, bits = engine.model.source, int(engine.plan.bits[0, 0])
    buffer, tier = engine.store.tier.allocate(source.nbytes(bits)), engine.store.tier
    away = np.argwhere(~engine.plan.resident)
    read, began = 0, time.perf_counter()
    while read < nbytes:
        record = source.record(*away[generator.integers(len(away))].tolist(), bits)
        tier.load(buffer, record)
        read += record.nbytes
    return (time.perf_counter() - began) * nbytes / read


def turn(engine: Engine, prompt: torch.Tensor, steps: int, generator: np.random.Generator) -> dict[str, float]:
    """Decode after a prompt; return what a step took and read."""
    engine.decoder.attach(engine.store)
    cache = engine.cache(1, PROMPT + steps)
    token = engine.step(prompt, cache)[:, -1].argmax(-1, keepdim=True)
    before, began = engine.metrics(), time.perf_counter()
    for _ in range(steps):
        token = engine.step(token, cache)[:, -1].argmax(-1, keepdim=True)
    seconds, after = time.perf_counter() - began, engine.metrics()
    counts = {
        name: after[name] - before[name] for name in ("hits", "misses", "guessed", "guessed_right", "bytes_moved")
    }
    alone = bare(engine, counts["bytes_moved"], generator) if counts["bytes_moved"] else float("nan")
    return {"step_s": seconds / steps, "disk_s": alone / steps, **counts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the model, made if it is not there")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    options = parser.parse_args()
    generator, rows = np.random.default_rng(0), []
    opened = open_model(*build(options.folder))
    layers, experts = opened.plan_shape
    for bits in options.bits:
        plan = Plan(np.full((layers, experts), bits), np.tile(np.arange(experts) < experts // 2, (layers, 1)))
        made, whole = engines(opened, plan), Engine(opened, Plan.uniform(layers, experts, bits))
        for round_ in range(options.rounds):
            vocabulary = opened.decoder.architecture.vocab_size
            prompt = torch.from_numpy(generator.integers(0, vocabulary, (1, PROMPT)))
            least = turn(whole, prompt, options.steps, generator)["step_s"]
            for at in generator.permutation(len(made)).tolist():
                readers, caching = WAYS[at]
                found = turn(made[at], prompt, options.steps, generator)
                found |= {"resident_s": least, "added": (found["step_s"] - least) / found["disk_s"]}
                rows.append({"bits": bits, "round": round_, "readers": readers, **asdict(caching), **found})
        del made, whole
    table = pd.DataFrame(rows)
    if options.output:
        write_csv(options.output, table)
    keys = ["bits", "readers", "policy", "prefetch"]
    values = ["resident_s", "step_s", "disk_s", "added", "hits", "misses", "guessed", "guessed_right"]
    print(table.groupby(keys)[values].median().to_string())


if __name__ == "__main__":
    main()

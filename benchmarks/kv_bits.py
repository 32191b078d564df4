"""What 8-bit keys and values cost: perplexity of text that is read back through them, beside 16 bits.

    python benchmarks/kv_bits.py --model data/models/mini-mixtral --text data/models/mini-mixtral/README.md

A text is fed in chunks of 16 tokens, so that all but the newest keys and values are those that the cache gives back.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch.nn import functional

from lumoe.moe.checkpoint.tokenize import tokenize
from lumoe.moe.engine.engine import Engine

CHUNK = 16


@torch.inference_mode()
def surprise(engine: Engine, windows: torch.Tensor) -> torch.Tensor:
    """Return the negative log-probability of every token but the first, nats, `[windows, tokens - 1]`."""
    cache, found = engine.cache(*windows.shape), []
    for begin in range(0, windows.shape[1], CHUNK):
        found.append(engine.step(windows[:, begin : begin + CHUNK], cache, last_only=False).float())
    logits = torch.cat(found, dim=1)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none").view(
        windows.shape[0], -1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="any text; the longer, the surer")
    parser.add_argument("--windows", type=int, default=200)
    options = parser.parse_args()
    engines = {bits: Engine.load(options.model, kv_bits=bits) for bits in (16, 8)}
    context = engines[16].decoder.architecture.max_position_embeddings
    ids, begin = tokenize(options.model, options.text.read_text(encoding="utf-8"))
    count = min(len(ids) // (context - 1), options.windows)
    windows = torch.tensor([[begin, *ids[at * (context - 1) :][: context - 1]] for at in range(count)])
    found = {bits: torch.cat([surprise(engine, part) for part in windows.split(8)]) for bits, engine in engines.items()}
    for bits, values in found.items():
        print(f"{bits:2} bits: perplexity {math.exp(values.mean()):.4f}")
    change = (found[8] - found[16]).mean(dim=1)
    error = change.std() / math.sqrt(count)
    print(
        f"8 against 16 bits: {change.mean():+.5f} ± {1.96 * error:.5f} nats a token over {count} windows of {context}"
    )


if __name__ == "__main__":
    main()

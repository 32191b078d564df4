"""Time and memory of libraries that hold answers to a form: `llguidance` against `xgrammar`, in processes of their own.

    pip install xgrammar
    python benchmarks/constraints.py --tokenizer FOLDER/tokenizer.json

A schema is compiled, and an answer that follows it is taken token by token, a mask before each one. Vocabularies are
the tokenizer's first tokens, or all of them and pairs of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
from tokenizers import Tokenizer

from lumoe.moe.serve.detokenizer import TokenBytes

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mail": {"type": "string", "pattern": "^[a-z.]{1,20}@[a-z]{1,20}[.](com|org)$"},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "lost"]}, "maxItems": 5},
        "near": {"type": "array", "items": {"$ref": "#/$defs/place"}},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["name", "age", "mail", "tags", "near", "note"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"lat": {"type": "number"}, "lon": {"type": "number"}},
            "required": ["lat", "lon"],
            "additionalProperties": False,
        }
    },
}
ANSWER = json.dumps(
    {
        "name": "Zoë of the sea, who has a house",
        "age": 42,
        "mail": "zoe.sea@house.org",
        "tags": ["new", "lost"],
        "near": [{"lat": 51.5, "lon": -0.12}, {"lat": 48.9, "lon": 2.35}],
        "note": "there was a house near the sea, and nobody in it",
    },
    ensure_ascii=False,
)


def vocabulary(path: str, size: int) -> list[bytes]:
    """Return the bytes of `size` tokens, special ones empty."""
    tokenizer = Tokenizer.from_file(path)
    known = TokenBytes(tokenizer)
    found = [b"" if token in known.special else known.of(token) for token in range(tokenizer.get_vocab_size())]
    found += [first + second for first in found[300:900] for second in found[300:900]][: max(size - len(found), 0)]
    return found[:size]


def spelled(tokens: list[bytes], text: bytes) -> list[int]:
    """Cut a text into the longest tokens."""
    index = {token: number for number, token in enumerate(tokens) if token}
    found, begin = [], 0
    while begin < len(text):
        size = next(size for size in range(24, 0, -1) if text[begin : begin + size] in index)
        found.append(index[text[begin : begin + size]])
        begin += size
    return found


def llguidance(tokens: list[bytes]) -> Callable[[], tuple[Callable[[], Any], Callable[[int], Any]]]:
    """Return what compiles the schema into a mask and a step."""
    import numpy as np

    from lumoe.moe.serve.constraints import Grammars, constraint_for_schema

    grammars = Grammars(lambda: tokens)
    grammars.compile(constraint_for_schema({"type": "boolean"}))

    def compiled() -> tuple[Callable[[], Any], Callable[[int], Any]]:
        grammars.compile(constraint_for_schema({**PERSON, "title": str(time.time())}))
        follower = grammars.compile(constraint_for_schema(PERSON)).follow(frozenset())
        return follower.allowed, follower.take

    assert np is not None
    return compiled


def xgrammar(tokens: list[bytes]) -> Callable[[], tuple[Callable[[], Any], Callable[[int], Any]]]:
    """Return what compiles the schema into a mask and a step."""
    import xgrammar as xgr

    end = len(tokens)
    info = xgr.TokenizerInfo([*tokens, b"</s>"], xgr.VocabType.RAW, vocab_size=end + 1, stop_token_ids=[end])
    compiler = xgr.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compiled() -> tuple[Callable[[], Any], Callable[[int], Any]]:
        matcher = xgr.GrammarMatcher(compiler.compile_json_schema(json.dumps(PERSON)))
        mask = xgr.allocate_token_bitmask(1, end + 1)
        return lambda: matcher.fill_next_token_bitmask(mask), matcher.accept_token

    return compiled


def measure(library: str, path: str, size: int) -> None:
    """Print one row."""
    tokens = vocabulary(path, size)
    answer = spelled(tokens, ANSWER.encode())
    before = psutil.Process().memory_info().rss
    begun = time.perf_counter()
    compiled = {"llguidance": llguidance, "xgrammar": xgrammar}[library](tokens)
    ready = time.perf_counter() - begun
    compiling, first, masks, steps = [], [], [], []
    for _ in range(5):
        begun = time.perf_counter()
        mask, step = compiled()
        compiling.append(time.perf_counter() - begun)
        for place, token in enumerate(answer):
            begun = time.perf_counter()
            mask()
            between = time.perf_counter()
            step(token)
            (masks if place else first).append(between - begun)
            steps.append(time.perf_counter() - between)
    masks.sort()
    print(
        f"{library:10} {len(tokens):6} tokens: ready {ready:.2f} s, compile {compiling[0] * 1e3:.1f} ms (again "
        f"{statistics.median(compiling) * 1e3:.1f}), mask median {statistics.median(masks) * 1e6:.0f} us, 99 % "
        f"{masks[len(masks) * 99 // 100] * 1e6:.0f}, most {masks[-1] * 1e6:.0f}, step "
        f"{statistics.median(steps) * 1e6:.0f} us, memory +{(psutil.Process().memory_info().rss - before) >> 20} MiB",
        flush=True,
    )


def main() -> None:
    """Measure every library at every size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "SIZE"))
    given = parser.parse_args()
    if given.one:
        measure(given.one[0], given.tokenizer, int(given.one[1]))
        return
    for size in (4000, 32000, 150000):
        for library in ("llguidance", "xgrammar"):
            subprocess.run([sys.executable, __file__, "--tokenizer", given.tokenizer, "--one", library, str(size)])


if __name__ == "__main__":
    main()

"""How far equal seeds give equal answers when other sequences share the steps: by the server's race and by inversion.

    python benchmarks/stable_draws.py --model data/models/mini-mixtral --output build/stable_draws.csv

Each seed's answer is drawn alone, and again among other sequences with random prompts of their own: the same prompt, at
temperature 1, by the scheduler that serves. How many share a step changes how its products are rounded, and so the
logits. A draw is compared where all draws before it were equal. There the inverse of the cumulated probabilities draws
from the same two rows of logits, too, with one uniform number for both; answers are drawn by it as a whole as well.

Ends are ignored, so that all answers are as long. No sequence begins with another one's keys and values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

import numpy as np
import pandas as pd
import torch

from lumoe.files import write_csv
from lumoe.moe.serve import scheduler as serving
from lumoe.moe.serve.app import Server
from lumoe.moe.serve.generation import Generation, Piece
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.sampling import SampledToken, Sampler, Sampling, sample
from lumoe.moe.serve.scheduler import Limits, Scheduler

Rule = Callable[[torch.Tensor, Sequence[Sampler]], list[SampledToken]]
COLUMNS = ("dtype", "others", "draws", "equal_by_race", "equal_by_inversion", "answers", "same_by_race",
           "same_by_inversion", "threads", "basis")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=16, help="seeds, each with a prompt of its own")
    parser.add_argument("--tokens", type=int, default=32, help="of each answer")
    parser.add_argument("--others", type=int, nargs="+", default=[1, 7, 31])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in ("bfloat16", "float32"):
        limits = Limits(max(options.others) + 1, 256, 2 * max(options.others) + 2, threads=options.threads,
                        share_prefixes=False)  # fmt: skip
        drawing = Drawing(load(Setup(options.model, dtype=dtype), limits), options.tokens)
        try:
            alone = {rule: [drawing.answer(seed, 0, rule) for seed in range(options.answers)] for rule in RULES}
            for others in options.others:
                found = {rule: [drawing.answer(seed, others, rule) for seed in range(options.answers)]
                         for rule in RULES}  # fmt: skip
                pairs = [pair for one, other in zip(alone["race"], found["race"], strict=True)
                         for pair in compared(one, other)]  # fmt: skip
                same = {rule: np.mean([a.tokens == b.tokens for a, b in zip(alone[rule], found[rule], strict=True)])
                        for rule in RULES}  # fmt: skip
                equal = [np.mean([pair[place] for pair in pairs]) for place in (0, 1)]
                rows.append((dtype, others, len(pairs), *equal, options.answers, same["race"], same["inversion"],
                             options.threads, "measured"))  # fmt: skip
                print(pd.DataFrame(rows[-1:], columns=list(COLUMNS)).to_string(header=len(rows) == 1), flush=True)
        finally:
            drawing.close()
    write_csv(options.output, pd.DataFrame(rows, columns=list(COLUMNS)))


class Drawn:
    """An answer: its tokens, and for each the logits and the uniform number that inversion drew it with."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.logits: list[torch.Tensor] = []
        self.uniform: list[float] = []


def invert(logits: torch.Tensor, uniform: float) -> int:
    """Draw from a row of logits by the inverse of the cumulated probabilities, in float64."""
    cumulated = torch.softmax(logits.float(), dim=-1).cumsum(-1, dtype=torch.float64)
    return int(torch.searchsorted(cumulated, uniform * float(cumulated[-1]), right=True).clamp(max=len(logits) - 1))


def uniform(sampler: Sampler) -> float:
    """Return the sampler's next random word as a number between 0 and 1."""
    return (float(sampler.words(1)[0]) + 0.5) * 2.0**-32


def inversion(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[SampledToken]:
    """Draw a token for each row as `lumoe.moe.serve.sampling.sample` does, but by inversion."""
    tokens = [invert(row, uniform(sampler)) for row, sampler in zip(logits, samplers, strict=True)]
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.drawn(token)
    return [SampledToken(token) for token in tokens]


RULES: dict[str, Rule] = {"race": sample, "inversion": inversion}


class Drawing:
    """A scheduler whose draws are looked at."""

    def __init__(self, server: Server, tokens: int) -> None:
        """Start the scheduler of a loaded model; answers have `tokens` tokens."""
        self._server, self._tokens = server, tokens
        self._scheduler = Scheduler(server.governor, server.metrics, server.limits)
        while not server.governor.settled:
            time.sleep(0.05)

    def answer(self, seed: int, others: int, rule: str) -> Drawn:
        """Return the answer for `seed` among `others`, all of them drawn by `rule`."""
        own, company = np.random.default_rng(seed), np.random.default_rng([seed, others])
        # What runs beside it began before and ends after it.
        generations = [self._generation(company, 1000 + number, self._tokens + 8) for number in range(others)]
        target, drawn = self._generation(own, seed, self._tokens), Drawn()

        def noted(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[SampledToken]:
            rows = [row for row, sampler in enumerate(samplers) if sampler is target[0].sampler]
            drawn.uniform += [uniform(samplers[row]) for row in rows]
            drawn.logits += [logits[row].clone() for row in rows]
            found = RULES[rule](logits, samplers)
            drawn.tokens += [found[row].token for row in rows]
            return found

        serving.sample = noted
        try:
            self._scheduler.submit([generation for generation, _ in [*generations, target]])
            for _, ended in [*generations, target]:
                ended.wait()
        finally:
            serving.sample = sample
        return drawn

    def close(self) -> None:
        """Stop the scheduler."""
        self._scheduler.close()
        self._server.governor.close()

    def _generation(self, random: np.random.Generator, seed: int, tokens: int) -> tuple[Generation, Event]:
        vocabulary, ended = self._server.engine.decoder.architecture.vocab_size, Event()
        prompt = random.integers(1, vocabulary, random.integers(8, 64)).tolist()

        def sink(event: object) -> None:
            if not isinstance(event, Piece):
                raise SystemExit(f"a sequence failed: {event}")
            if event.finish:
                ended.set()

        sampling = Sampling(temperature=1.0, seed=seed, max_tokens=tokens)
        return Generation(prompt, sampling, self._server.prompts.tokens, sink), ended


def compared(alone: Drawn, among: Drawn) -> list[tuple[bool, bool]]:
    """Return, of each draw after equal ones, whether it is equal by the race, and by inversion of the same logits."""
    found = []
    for place, (one, other) in enumerate(zip(alone.tokens, among.tokens, strict=True)):
        at = alone.uniform[place]
        found.append((one == other, invert(alone.logits[place], at) == invert(among.logits[place], at)))
        if one != other:
            break
    return found


if __name__ == "__main__":
    main()

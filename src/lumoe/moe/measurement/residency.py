"""Which experts should be resident: policies replayed on recorded and on synthetic routing, as hit rates and reads.

Every policy holds the same number of experts, in each layer or in the whole model, so that they differ in choice alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch

from lumoe.errors import UserError
from lumoe.moe.engine.engine import Engine
from lumoe.moe.measurement.replay import (
    Bools,
    Floats,
    Trace,
    frequencies,
    most_used,
    replay,
    replay_best,
    replay_fixed,
)
from lumoe.moe.measurement.synthetic_routes import COARSE, FINE
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.router import Router
from lumoe.moe.planning import caching_choice
from lumoe.moe.planning.caching import Caching, Scope
from lumoe.moe.planning.caching_choice import Rates
from lumoe.moe.planning.cost import CostModel, Served
from lumoe.moe.planning.plan import Plan

HALF_LIVES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 512.0)
MOST_PLACES = 16
SCOPES: tuple[Scope, ...] = ("layer", "model")
COLUMNS = (
    "trace",
    "policy",
    "scope",
    "half_life",
    "guesses",
    "prefetch",
    "seed",
    "resident_share",
    "resident_experts",
    "hit_rate",
    "expected_hit_rate",
    "ready_rate",
    "experts_read",
    "bytes_read",
    "regret",
    "modelled_tokens_per_s",
    "predicted_tokens_per_s",
    "tokens",
    "lookups",
    "basis",
)


class _Overheard(Router):
    """A router that also notes what the next layer's router makes of the same hidden states."""

    __slots__ = ("following", "guesses")

    def __init__(self, own: Router, following: Router, most: int) -> None:
        super().__init__(own.gate, own.top_k, own.settings, own.bias, own.correction)
        # Its own score always gives two experts; the order of the others is that of a softmax.
        settings = following.settings
        settings = dataclasses.replace(settings, score="softmax") if settings.score == "sparsemixer" else settings
        self.following = Router(following.gate, most, settings, following.bias, following.correction)
        self.guesses: list[torch.Tensor] = []

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.guesses.append(self.following(hidden)[1])
        return super().__call__(hidden)


@torch.inference_mode()
def record_trace(engine: Engine, sequences: torch.Tensor) -> Trace:
    """Return the experts that each token of `sequences [S, T]` is routed to, int64 `[S·T, layers, k]`, in order."""
    parts: list[torch.Tensor] = []
    for sequence in sequences:
        chosen: list[torch.Tensor] = []
        engine.observe(lambda layer, experts, to=chosen: to.append(experts))  # type: ignore[misc]
        engine.logits(sequence)
        parts.append(torch.stack(chosen, dim=1))
    engine.observe(None)
    return torch.cat(parts).numpy()


def record_with_guesses(engine: Engine, sequences: torch.Tensor, most: int) -> tuple[Trace, Trace]:
    """Return what `record_trace` does and, of each layer, what its router would have chosen one layer earlier.

    Args:
        most: guesses of a token and layer.

    Returns:
        The trace, and guesses int64 `[S·T, layers, most]`, the likeliest first; -1 in the first layer, which nothing
        comes before.

    Raises:
        UserError: a layer has fewer experts.
    """
    assert isinstance(engine.decoder, Decoder)
    layers = engine.decoder.moe_layers
    if most > len(layers[0].router.gate):
        raise UserError(f"prefetch: {most} experts of a layer that has {len(layers[0].router.gate)}")
    own = [layer.router for layer in layers]
    overheard = [_Overheard(router, following, most) for router, following in pairwise(own)]
    try:
        for layer, router in zip(layers, overheard, strict=False):
            layer.router = router
        trace = record_trace(engine, sequences)
    finally:
        for layer, kept in zip(layers, own, strict=True):
            layer.router = kept
    guesses = np.full((*trace.shape[:2], most), -1)
    for index, router in enumerate(overheard):
        guesses[:, index + 1] = torch.cat(router.guesses).numpy()
    return trace, guesses


@dataclass(frozen=True, eq=False)
class Transitions:
    """How often experts of a layer are used after those of the layer before.

    Attributes:
        counts: `[L - 1, E, E]`, tokens routed to expert j of layer l + 1 that were routed to expert i of layer l.
    """

    counts: Floats

    @classmethod
    def learn(cls, trace: Trace, experts: int) -> Transitions:
        """Count them in a trace."""
        _, layers, k = trace.shape
        counts = np.zeros((layers - 1, experts, experts))
        for before in range(layers - 1):
            for first in range(k):
                for second in range(k):
                    np.add.at(counts[before], (trace[:, before, first], trace[:, before + 1, second]), 1.0)
        return cls(counts)

    def guess(self, trace: Trace, most: int) -> Trace:
        """Return the `most` experts that most often come after those of the layer before, `[tokens, L, most]`."""
        guesses = np.full((*trace.shape[:2], most), -1)
        for before, counts in enumerate(self.counts):
            chance = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
            score = chance[trace[:, before]].sum(axis=1)
            guesses[:, before + 1] = np.argsort(-score, axis=1, kind="stable")[:, :most]
        return guesses


@dataclass(frozen=True, eq=False)
class Costs:
    """What reads and steps are counted at.

    Attributes:
        bits: of all experts.
        expert_bytes: of one expert.
        model: what steps take; without it no speed is modelled.
    """

    bits: int
    expert_bytes: int
    model: CostModel | None = None

    def predict(self, hits: Floats | None) -> float | None:
        """Return tokens/s of decoding by the hit rate of each layer, `[L]`; None if either is not known."""
        if self.model is None or hits is None:
            return None
        plan = Plan.uniform(*self.model.shape.plan_shape, bits=self.bits, resident=False)
        return 1.0 / self.model.step_seconds(plan, 1, Served(hits))


@dataclass(frozen=True, eq=False)
class Held:
    """What is replayed: a trace of held-out text, and guesses by source (`router`, `transitions`), `[tokens, L, m]`."""

    name: str
    trace: Trace
    guesses: Mapping[str, Trace] = dataclasses.field(default_factory=dict)

    def guessed(self, source: str, guesses: Trace) -> Held:
        """Return the same with guesses of another source beside those that there are."""
        return dataclasses.replace(self, guesses={**self.guesses, source: guesses})

    @classmethod
    def joined(cls, parts: Sequence[Held], name: str) -> Held:
        """Return traces one after another."""
        guesses = {source: np.concatenate([part.guesses[source] for part in parts]) for source in parts[0].guesses}
        return cls(name, np.concatenate([part.trace for part in parts]), guesses)


@dataclass(frozen=True)
class Way:
    """One policy at one number of places, as it goes into a row."""

    policy: str
    scope: Scope
    count: int
    seed: int = 0
    half_life: float | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """Policies tried on calibration text: what they learned from one half of it, they use on the other.

    Attributes:
        trace: of all the text.
        experts: of a layer.
        slots: places of a layer, `n` numbers.
        rates: of each policy, `[n, L]`.
    """

    trace: Trace
    experts: int
    slots: Sequence[int]
    rates: Mapping[Caching, Rates]

    @classmethod
    def run(
        cls,
        held: Held,
        experts: int,
        slots: Sequence[int],
        sequence: int,
        prefetch: Sequence[int] = (),
    ) -> Trial:
        """Learn from every other stretch of `sequence` tokens, and replay on those between.

        Args:
            held: a trace of calibration text, and the router's guesses where `prefetch` has numbers of them.

        Raises:
            UserError: there are not two stretches, or a layer has not as many experts as places.
        """
        _check(slots, experts)
        trace = held.trace
        odd = np.arange(len(trace)) // sequence % 2 == 1
        if odd.all() or not odd.any():
            raise UserError(f"{len(trace)} tokens of calibration text are not two sequences of {sequence}")
        usage, rest = frequencies(trace[~odd], experts), trace[odd]
        guesses = held.guesses["router"][odd] if prefetch else None
        asked = rest if guesses is None else np.concatenate([rest, guesses], axis=2)
        rates: dict[Caching, Rates] = {}
        for scope in SCOPES:
            start = np.stack([most_used(usage, count, scope) for count in slots])
            cachings = [Caching("lru", scope), *(Caching("lfru", scope, life) for life in HALF_LIVES)]
            fixed = np.stack([replay_fixed(asked, resident) for resident in start])
            for caching, near in zip(
                [Caching("static", scope), *cachings],
                [fixed, *replay(rest, cachings, start, usage, guesses)],
                strict=True,
            ):
                found, there = near[..., : rest.shape[2]], near[..., rest.shape[2] :]
                rates[caching] = Rates.none_ahead(found.mean(axis=(1, 3)))
                for most in prefetch:
                    assert guesses is not None
                    ready, ahead = _ready(rest, found, guesses[..., :most], there[..., :most])
                    rates[dataclasses.replace(caching, prefetch=most)] = Rates(
                        found.mean(axis=(1, 3)), ready.mean(axis=(1, 3)), ahead.mean(axis=1)
                    )
        return cls(trace, experts, slots, rates)

    def table(self) -> pd.DataFrame:
        """Return rows of `lumoe.moe.planning.caching_choice.COLUMNS`, by which a planner chooses."""
        rows = []
        for caching, rates in self.rates.items():
            life = caching.half_life if caching.policy == "lfru" else None
            for at, layer in np.ndindex(rates.hits.shape):
                found = (part[at, layer] for part in rates.parts)
                share = self.slots[at] / self.experts
                rows.append((caching.policy, caching.scope, life, caching.prefetch, share, layer, *found))
        return pd.DataFrame(rows, columns=list(caching_choice.COLUMNS))


@dataclass(frozen=True, eq=False)
class Learned:
    """What is known before a trace begins, from calibration text.

    Attributes:
        usage: `[L, E]`, how often a token is routed to each expert.
        trial: of the policies, on calibration text.
        transitions: from layer to layer, for guesses.
    """

    usage: Floats
    trial: Trial
    transitions: Transitions

    @classmethod
    def learn(cls, usage: Floats, trial: Trial) -> Learned:
        """Take what a trial on calibration text says about other text."""
        return cls(usage, trial, Transitions.learn(trial.trace, usage.shape[1]))

    def half_life(self, scope: Scope, count: int) -> float:
        """Return the half-life that served calibration text best at `count` places a layer."""
        at = self.trial.slots.index(count)
        return max(HALF_LIVES, key=lambda life: float(self.trial.rates[Caching("lfru", scope, life)].hits[at].mean()))

    def expected(self, way: Way) -> Floats | None:
        """Return the hit rate of each layer that calibration text lets expect, `[L]`; None if it says nothing."""
        if way.policy not in ("frequency", "lru", "lfru"):
            return None
        life = {} if way.half_life is None else {"half_life": way.half_life}
        caching = Caching("static" if way.policy == "frequency" else way.policy, way.scope, **life)  # type: ignore[arg-type]
        rates: Floats = self.trial.rates[caching].hits[self.trial.slots.index(way.count)]
        return rates


def compare(
    held: Sequence[Held],
    learned: Learned,
    slots: Sequence[int],
    seeds: Sequence[int],
    costs: Costs,
    prefetch: Sequence[int] = (),
) -> pd.DataFrame:
    """Return hits and reads of every policy and number of places, for traces of the same length one after another.

    `random` draws its residents (the paper's static choice), `frequency` takes the experts used most on calibration
    text, `oracle` those used most in the trace itself (the best that a fixed choice can do); `lru` and `lfru` change as
    they go, and begin with those of `frequency`; `belady` is the best that any policy can do.

    Args:
        slots: places of a layer; with scope `model`, as many times the layers for all of them.
        prefetch: numbers of guesses that are read ahead, each tried with each source of guesses.

    Returns:
        COLUMNS. `hit_rate` is of look-ups that find their expert resident, `ready_rate` resident or rightly guessed.
        `experts_read` and `bytes_read` are for one token. `regret` says how many more look-ups miss than Belady's at as
        many places of the same scope, relative to these.

    Raises:
        UserError: more residents are asked for than a layer has experts.
    """
    _check(slots, learned.usage.shape[1])
    tables: list[list[dict[str, object]]] = [[] for _ in held]
    missed: dict[tuple[Scope, int, int], int] = {}
    for way, at, near in _all_ways(held, learned, slots, seeds):
        misses = int((~near[..., : held[at].trace.shape[2]]).sum())
        if way.policy == "belady":
            missed[way.scope, way.count, at] = misses
        least, expected = missed[way.scope, way.count, at], learned.expected(way)
        about = {
            "trace": held[at].name,
            **dataclasses.asdict(way),
            "resident_share": way.count / learned.usage.shape[1],
            "resident_experts": way.count * len(learned.usage),
            "expected_hit_rate": None if expected is None else float(expected.mean()),
            "regret": misses / least - 1 if least else (0.0 if not misses else np.nan),
            "tokens": len(held[at].trace),
            "lookups": held[at].trace.size,
            "basis": "simulated",
        }
        predicted = {"predicted_tokens_per_s": costs.predict(expected)}
        for counted in _all_guesses(held[at], near, costs, prefetch if way.policy != "random" else ()):
            tables[at].append(about | counted | (predicted if counted["guesses"] == "none" else {}))
    return pd.DataFrame([row for table in tables for row in table], columns=list(COLUMNS))


def _all_guesses(held: Held, near: Bools, costs: Costs, prefetch: Sequence[int]) -> Iterator[dict[str, object]]:
    """Yield what is found and read without guesses, then with so many of each source.

    Args:
        near: what is resident at each look-up: of the trace, then of the guesses in the order of their sources' names.
    """
    at = held.trace.shape[2]
    found = near[..., :at]
    about = {"hit_rate": float(found.mean())}
    yield about | {"guesses": "none", "prefetch": 0} | _traffic(held.trace, found, None, None, costs)
    for source, guesses in sorted(held.guesses.items()):
        there = near[..., at : at + guesses.shape[2]]
        at += guesses.shape[2]
        for most in prefetch:
            counted = _traffic(held.trace, found, guesses[..., :most], there[..., :most], costs)
            yield about | {"guesses": source, "prefetch": most} | counted


def numbers_of_places(experts: int) -> list[int]:
    """Return the places of a layer that are tried: all numbers of them up to MOST_PLACES, else evenly spaced ones."""
    steps = min(experts, MOST_PLACES)
    return [round(step * experts / steps) for step in range(steps + 1)]


def _check(slots: Sequence[int], experts: int) -> None:
    if min(slots) < 0 or max(slots) > experts:
        raise UserError(f"a layer has {experts} experts: {max(slots)} of them cannot be resident")


def _all_ways(
    held: Sequence[Held], learned: Learned, slots: Sequence[int], seeds: Sequence[int]
) -> Iterator[tuple[Way, int, Bools]]:
    """Yield each policy on each trace with what is resident at each look-up, `[tokens, L, k + m]`.

    Of a scope the bound comes first. Traces are replayed side by side, which takes hardly longer than one of them.
    """
    layers, experts = learned.usage.shape
    trace, count_of = np.concatenate([part.trace for part in held], axis=1), len(held)
    sources = [np.concatenate([part.guesses[name] for part in held], axis=1) for name in sorted(held[0].guesses)]
    guesses = np.concatenate(sources, axis=2) if sources else None
    asked = trace if guesses is None else np.concatenate([trace, guesses], axis=2)
    own = frequencies(trace, experts)

    def split(way: Way, near: Bools) -> Iterator[tuple[Way, int, Bools]]:
        return ((way, at, near[:, at * layers : (at + 1) * layers]) for at in range(count_of))

    def fixed(way: Way, resident: Bools) -> Iterator[tuple[Way, int, Bools]]:
        return split(way, replay_fixed(asked, resident))

    for scope in SCOPES:
        best = replay_best(trace, slots, experts, scope, guesses, count_of)
        for near, count in zip(best, slots, strict=True):
            yield from split(Way("belady", scope, count), near)
        start = np.stack([np.tile(most_used(learned.usage, count, scope), (count_of, 1)) for count in slots])
        lives = sorted({learned.half_life(scope, count) for count in slots})
        cachings = [Caching("lru", scope), *(Caching("lfru", scope, life) for life in lives)]
        changing = replay(trace, cachings, start, np.tile(learned.usage, (count_of, 1)), guesses, count_of)
        for at, count in enumerate(slots):
            for seed in seeds if scope == "layer" else ():
                drawn = np.random.default_rng(seed).random(learned.usage.shape)
                yield from fixed(Way("random", scope, count, seed), np.tile(most_used(drawn, count), (count_of, 1)))
            yield from fixed(Way("frequency", scope, count), start[at])
            chosen = [most_used(part, count, scope) for part in np.split(own, count_of)]
            yield from fixed(Way("oracle", scope, count), np.concatenate(chosen))
            yield from split(Way("lru", scope, count), changing[0, at])
            life = learned.half_life(scope, count)
            yield from split(Way("lfru", scope, count, half_life=life), changing[1 + lives.index(life), at])


def _traffic(
    trace: Trace, found: Bools, guesses: Trace | None, there: Bools | None, costs: Costs
) -> dict[str, float | None]:
    """Count what is ready and what is read; a guess that is not resident is read, used or not.

    Args:
        guesses, there: `[tokens, L, m]`, what is guessed (-1: nothing), and whether it is resident.
    """
    ready, ahead = found, np.zeros(trace.shape[:2], dtype=np.int64)
    if guesses is not None and there is not None:
        ready, ahead = _ready(trace, found, guesses, there)
    late = (~ready).sum(axis=2)
    read = float((late + ahead).sum() / len(trace))
    return {
        "ready_rate": float(ready.mean()),
        "experts_read": read,
        "bytes_read": read * costs.expert_bytes,
        "modelled_tokens_per_s": (
            None if costs.model is None else 1.0 / costs.model.replayed_seconds(costs.bits, late, ahead)
        ),
    }


def _ready(trace: Trace, found: Bools, guesses: Trace, there: Bools) -> tuple[Bools, Trace]:
    """Return which look-ups find their expert resident or read ahead, and how many are read ahead.

    Args:
        found: `[..., tokens, L, k]`, and so is what is returned first; the other is `[..., tokens, L]`.
        guesses: `[tokens, L, m]`, -1 where nothing is guessed.
        there: `[..., tokens, L, m]`, which of them are resident.
    """
    right = (trace[..., :, None] == guesses[..., None, :]).any(axis=3)
    return found | right, ((guesses >= 0) & ~there).sum(axis=-1)


def synthetic(tokens: int, seeds: Sequence[int], costs: Costs) -> list[pd.DataFrame]:
    """Compare policies on synthetic routing that drifts, coarse experts and fine ones; the first half calibrates.

    Places go from half of a token's experts to half of a layer's. No speed is modelled: experts are of no model.
    """
    tables = []
    for routes in (COARSE, FINE):
        trace = routes.draw(2 * tokens, seeds[0])
        slots = sorted(
            {routes.top_k * halves // 2 for halves in (1, 2, 3, 4, 6, 8)} & {*range(routes.experts // 2 + 1)}
        )
        trial = Trial.run(Held(routes.name, trace[:tokens]), routes.experts, slots, routes.period // 2)
        learned = Learned.learn(frequencies(trace[:tokens], routes.experts), trial)
        counted = dataclasses.replace(costs, model=None)
        tables.append(compare([Held(routes.name, trace[tokens:])], learned, slots, seeds, counted))
    return tables

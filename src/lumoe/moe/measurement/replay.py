"""Residency policies replayed on recorded routing, all numbers of places at once; needs no model, and no torch.

A trace says which experts each token was routed to, layer by layer. What a replay gives is whether each of them was
resident when it was looked up. A policy that changes residents does so after a look-up, as the store does: a missed
expert takes the place of the one of the least value that the look-up does not need itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lumoe.moe.planning.caching import Caching, Scope, Values

Trace = NDArray[np.int64]
"""Experts of each token in each layer, `[tokens, L, k]`."""
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
# More than any value, and less than what stands for no victim.
_MOST = np.finfo(float).max


def frequencies(trace: Trace, experts: int) -> Floats:
    """Return how often a token is routed to each expert, `[L, E]`; rows sum to k."""
    tokens, layers, _ = trace.shape
    counts = np.stack([np.bincount(trace[:, layer].ravel(), minlength=experts) for layer in range(layers)])
    return np.asarray(counts / tokens)


def most_used(usage: Floats, slots: int, scope: Scope = "layer") -> Bools:
    """Return bool `[L, E]`: the `slots` most used experts of each layer, or `slots·L` of the whole model."""
    wanted, places = (usage, slots) if scope == "layer" else (usage.reshape(1, -1), slots * len(usage))
    order = np.argsort(-wanted, axis=1, kind="stable")
    resident = np.zeros(wanted.shape, dtype=bool)
    np.put_along_axis(resident, order[:, :places], True, axis=1)
    return resident.reshape(usage.shape)


def replay_fixed(trace: Trace, resident: Bools) -> Bools:
    """Return which look-ups find their expert, `[tokens, L, k]`, when the residents `[L, E]` stay as they are."""
    return np.asarray(resident[np.arange(trace.shape[1])[:, None], trace])


def replay(
    trace: Trace,
    cachings: Sequence[Caching],
    start: Bools,
    usage: Floats | None = None,
    guesses: Trace | None = None,
    traces: int = 1,
) -> Bools:
    """Replay policies that change the residents.

    Args:
        trace: one, or as many as `traces` side by side: the layers of the second follow those of the first, and so on.
        cachings: of one scope; `lru` or `lfru`.
        start: residents at first, `[n, L, E]`, for each number of places that is tried.
        usage: `[L, E]`, what `lfru` starts from (see `Values`).
        guesses: experts that might be read ahead, `[tokens, L, m]`; -1 where there is none.

    Returns:
        Whether each expert of the trace, then each guess, is resident at its look-up:
        `[policies, n, tokens, L, k + m]`.
    """
    tokens, layers, k = trace.shape
    experts = start.shape[2]
    # Values of layers do not touch one another: as one long layer, the uses of a token are noted at once.
    block = np.zeros((len(cachings), 1, layers * experts))
    values = []
    for caching, now in zip(cachings, block, strict=True):
        value = Values(caching, (1, layers * experts), None if usage is None else usage.reshape(1, -1))
        now[:] = value.now
        value.now = now  # one array for all policies, which each changes in place
        values.append(value)
    # A row of places competes within itself: one a layer, or one for the model, whose look-ups come layer by layer.
    rows = layers if cachings[0].scope == "layer" else traces
    asked = _in_turns(trace if guesses is None else np.concatenate([trace, guesses], axis=2), rows, experts)
    turns = asked.shape[1]
    resident = np.repeat(start[None], len(cachings), axis=0).reshape(len(cachings), len(start), rows, -1)
    worth = block.reshape(len(cachings), 1, rows, -1)
    always = np.array([caching.policy == "lru" for caching in cachings])[:, None, None]
    near = np.empty((tokens, turns, len(cachings), len(start), rows, asked.shape[3]), dtype=bool)
    row = np.arange(rows)[:, None]
    used = (asked[..., :k] + turns * experts * row).reshape(tokens, turns, -1)
    for token in range(tokens):
        for value in values:
            value.step()
        for turn in range(turns):
            for value in values:
                value.use(0, used[token, turn])
            wanted = asked[token, turn]
            found = near[token, turn] = resident[:, :, row, wanted]
            if not found[..., :k].all():
                _change(resident, worth, wanted[:, :k], found[..., :k], always)
    near = near.transpose(2, 3, 0, 4, 1, 5)
    return near.reshape(len(cachings), len(start), tokens, layers, asked.shape[3])


def _in_turns(trace: Trace, rows: int, experts: int) -> Trace:
    """Return what rows are asked for in the turns of a token, as numbers of members: `[tokens, turns, rows, k]`."""
    tokens, layers, k = trace.shape
    turns = layers // rows
    members: Trace = trace.reshape(tokens, rows, turns, k) + experts * np.arange(turns)[:, None]
    return members.transpose(0, 2, 1, 3)


def _change(resident: Bools, worth: Floats, chosen: Trace, found: Bools, always: Bools) -> None:
    """Let missed experts take places, one after another.

    Args:
        resident: `[policies, n, rows, members]`, changed in place.
        worth: `[policies, 1, rows, members]`.
        chosen: what each row is asked for, `[rows, k]`, found or not: `[policies, n, rows, k]`.
        always: whether a policy lets in what is worth less than the one that goes.
    """
    row = np.arange(len(chosen))[:, None]
    spare = np.where(resident, worth, np.inf)
    spare[:, :, row, chosen] = np.inf
    own = np.where(always[..., None], _MOST, worth[:, :, row, chosen])
    missed = ~found
    for turn in np.flatnonzero(missed.any(axis=(0, 1, 2))).tolist():
        policy, count, place = np.nonzero(missed[..., turn] & (own[..., turn] >= spare.min(axis=-1)))
        if policy.size:
            victim = spare[policy, count, place].argmin(axis=-1)
            resident[policy, count, place, victim] = False
            spare[policy, count, place, victim] = np.inf
            resident[policy, count, place, chosen[place, turn]] = True


def replay_best(
    trace: Trace,
    slots: Sequence[int],
    experts: int,
    scope: Scope = "layer",
    guesses: Trace | None = None,
    traces: int = 1,
) -> Bools:
    """Replay the best that any policy could do: it knows the future (L. A. Belady, IBM Systems Journal 5(2), 1966).

    After a look-up it keeps those that are needed soonest, of the residents and the experts looked up: what is missed
    need not stay. It starts with those needed first.

    Args:
        slots: places of each layer (`layer`), or of the model divided by its layers (`model`).
        guesses, traces: see `replay`.

    Returns:
        As `replay`, without policies: `[n, tokens, L, k + m]`.
    """
    tokens, layers, k = trace.shape
    rows = layers if scope == "layer" else traces
    asked = _in_turns(trace if guesses is None else np.concatenate([trace, guesses], axis=2), rows, experts)
    turns, width = asked.shape[1], asked.shape[3]
    # Times count look-ups of a row.
    steps = asked.reshape(-1, rows, width)
    following = _next_uses(steps[..., :k], experts * turns)
    places = np.array(slots)[:, None, None] * turns
    row = np.arange(rows)[:, None]
    near = np.empty((len(steps), len(slots), rows, width), dtype=bool)
    resident = np.argsort(np.argsort(following[0], axis=-1), axis=-1) < places
    for step, wanted in enumerate(steps):
        found = near[step] = resident[:, row, wanted]
        if not found[..., :k].all():
            resident[:, row, wanted[:, :k]] = True
            soon = np.where(resident, following[step + 1], len(steps) + 1)
            resident &= np.argsort(np.argsort(soon, axis=-1, kind="stable"), axis=-1) < places
    near = near.reshape(tokens, turns, len(slots), rows, width).transpose(2, 0, 3, 1, 4)
    return near.reshape(len(slots), tokens, layers, width)


def _next_uses(steps: Trace, members: int) -> NDArray[np.int64]:
    """Return when each member of a row is used next at or after each step, `[steps + 1, rows, members]`."""
    count, rows, _ = steps.shape
    following = np.full((count + 1, rows, members), count)
    row = np.arange(rows)[:, None]
    for step in range(count - 1, -1, -1):
        following[step] = following[step + 1]
        following[step, row, steps[step]] = step
    return following

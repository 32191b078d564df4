"""An interpolated Kneser-Ney trigram model over token ids: what a language model has to beat.

Kneser and Ney 1995; the interpolated form of Chen and Goodman 1999, "An empirical study of smoothing techniques for
language modeling", eq. 25, with one absolute discount per order, D = n1 / (n1 + 2 n2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Order:
    """The counts of one order: n-grams as sorted keys, and for each context its total and number of continuations."""

    keys: Ids
    counts: Ids
    contexts: Ids
    totals: Ids
    continuations: Ids
    discount: float

    @classmethod
    def of(cls, keys: Ids, counts: Ids, vocabulary: int) -> _Order:
        """Group sorted n-gram `keys` (context * vocabulary + token) by context."""
        contexts, first = np.unique(keys // vocabulary, return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        return cls(
            keys=keys,
            counts=counts,
            contexts=contexts,
            totals=np.add.reduceat(counts, first) if len(first) else counts,
            continuations=np.diff(np.append(first, len(keys))),
            # Without an n-gram seen once or twice the estimate is undefined; half a count is its usual size.
            discount=once / (once + 2 * twice) if once else 0.5,
        )

    def interpolate(self, context: Ids, token: Ids, vocabulary: int, lower: Floats) -> Floats:
        """Return p(token | context) of this order, backed by `lower`, the next shorter order's probabilities."""
        counts = _look_up(self.keys, self.counts, context * vocabulary + token)
        totals = _look_up(self.contexts, self.totals, context)
        kinds = _look_up(self.contexts, self.continuations, context)
        with np.errstate(divide="ignore", invalid="ignore"):
            mixed = (np.maximum(counts - self.discount, 0) + self.discount * kinds * lower) / totals
        return np.where(totals > 0, mixed, lower)


class Trigram:
    """Trigram probabilities from a training stream.

    Args:
        tokens: [n] training token ids in [0, vocabulary).
        vocabulary: number of distinct ids; vocabulary³ must fit 63 bits.
    """

    def __init__(self, tokens: Ids, vocabulary: int) -> None:
        if len(tokens) < 3:
            raise ValueError(f"a trigram model needs at least 3 training tokens, not {len(tokens)}")
        if vocabulary >= 2**21:
            raise ValueError(f"vocabulary {vocabulary} is too large for trigram keys of 63 bits")
        stream = np.asarray(tokens, dtype=np.int64)
        v = vocabulary
        self.vocabulary = v
        triples, triple_counts = np.unique((stream[:-2] * v + stream[1:-1]) * v + stream[2:], return_counts=True)
        # Lower orders count in how many contexts a pair or a token was seen, not how often.
        pairs, pair_counts = np.unique(triples % (v * v), return_counts=True)
        singles, single_counts = np.unique(pairs % v, return_counts=True)
        self._orders = [
            _Order.of(keys, counts, v)
            for keys, counts in ((singles, single_counts), (pairs, pair_counts), (triples, triple_counts))
        ]

    def probabilities(self, before: Ids, last: Ids, token: Ids) -> Floats:
        """Return p(token | before, last), elementwise over three arrays of ids of one shape."""
        single, pair, triple = self._orders
        v = self.vocabulary
        uniform = np.full(token.shape, 1.0 / v)
        p = single.interpolate(np.zeros_like(token), token, v, uniform)
        p = pair.interpolate(last, token, v, p)
        return triple.interpolate(before * v + last, token, v, p)

    def nll(self, tokens: Ids, positions: Ids) -> Floats:
        """Return -log p, nats, of ``tokens[positions]``, each given the two tokens before it; positions are >= 2."""
        stream = np.asarray(tokens, dtype=np.int64)
        return np.asarray(
            -np.log(self.probabilities(stream[positions - 2], stream[positions - 1], stream[positions])),
            dtype=np.float64,
        )


def _look_up(keys: Ids, values: Ids, wanted: Ids) -> Ids:
    """Return the value of each wanted key, 0 where absent; `keys` are sorted."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)

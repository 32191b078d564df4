"""The Mixture-of-Experts block: a router that picks experts for each token, and whoever has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise, zip_longest
from typing import Protocol

import torch

from lumoe.moe.kernels.routing import grouped, weighted_sums
from lumoe.moe.model.activation import Gated, gate_of, swiglu
from lumoe.moe.model.expert import Expert, run_together
from lumoe.moe.model.feed_forward import FeedForward
from lumoe.moe.model.router import Router

# Called with the layer and the chosen experts, int64 [tokens, k].
Observer = Callable[[int, torch.Tensor], None]


class Experts(Protocol):
    """Whoever has the experts; where their weights lie and how they get here is its own matter."""

    def fetch(
        self, layer: int, wanted: Sequence[int], tokens: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Expert]]:
        """Yield `(index, expert)` for each of `wanted` (distinct), in any order; an expert may go with the next one.

        Args:
            tokens: how many each of `wanted` will be given; one by default.
        """
        ...

    def at_hand(self, layer: int, wanted: Sequence[int]) -> list[Expert] | None:
        """Return `wanted`, if all of them are where they compute from; else None, and `fetch` brings them."""
        ...

    @property
    def looks_ahead(self) -> bool:
        """Whether it helps to tell what a later layer may choose."""
        ...

    def expect(self, layer: int, guess: Callable[[], Sequence[int]]) -> None:
        """Let `guess` say which experts `layer` will likely ask for, the likeliest first; called before a look-up.

        A wrong guess costs time and nothing else.
        """
        ...


class ExpertBiases:
    """What is added to the products of one layer's experts, and what they make of them then.

    Attributes:
        activations: of each expert, with the biases of its first two products.
        outputs: added to their third product, `[experts, hidden]`.
    """

    __slots__ = ("activations", "nbytes", "outputs")

    def __init__(self, activations: Sequence[Gated], outputs: torch.Tensor, nbytes: int) -> None:
        self.activations, self.outputs, self.nbytes = activations, outputs, nbytes

    def of_rows(self, experts: Sequence[int], ends: Sequence[int]) -> torch.Tensor:
        """Return what is added to the third product of each row, where expert i has rows `ends[i] ... ends[i + 1]`."""
        shares = torch.tensor([end - begin for begin, end in pairwise(ends)])
        return self.outputs[torch.tensor(experts).repeat_interleave(shares)]


class MoELayer:
    """One layer's router and experts, and the network beside them that every token passes, if there is one."""

    __slots__ = (
        "_gate", "_gates", "activation", "biases", "experts", "following", "index", "observer", "router", "shared"
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        router: Router,
        shared: FeedForward | None = None,
        activation: Gated = swiglu,
        biases: ExpertBiases | None = None,
    ) -> None:
        """Prepare a layer; it has no experts yet.

        Args:
            index: of the layer among those with experts, as plans count them.
        """
        self.index, self.router, self.shared, self.activation, self.biases = index, router, shared, activation, biases
        # What kernels are told in place of the activations.
        self._gate = gate_of(activation)
        self._gates = [] if biases is None else [gate_of(one) for one in biases.activations]
        self.experts: Experts | None = None
        self.observer: Observer | None = None
        # The router of the layer after this one, where experts are read ahead.
        self.following: Router | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are always resident."""
        return self.router.nbytes + sum(part.nbytes for part in (self.shared, self.biases) if part is not None)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map `[tokens, hidden]` to the weighted sum of each token's experts, and what is beside them.

        Sums run in the router's order whatever order the experts arrive in, so residency never changes a bit.
        """
        return self.routed(hidden, *self.router(hidden))

    def routed(self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Return what a call does, once the router has made `weights` and `chosen`, both `[tokens, k]`."""
        found = self.mix(hidden, weights, chosen)
        return found if self.shared is None else found + self.shared(hidden)

    def mix(
        self, hidden: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the sum of the `chosen` experts' outputs, weighted.

        Args:
            weights, chosen: `[tokens, k]`, as a router makes them.
            onto: `[tokens, hidden]`, contiguous, what the sum is added to.
        """
        if self.observer is not None:
            self.observer(self.index, chosen)
        if self.following is not None and self.experts is not None:
            self.experts.expect(self.index + 1, partial(likely, self.following, hidden))
        if hidden.shape[0] == 1:
            wanted = chosen.tolist()[0]
            outputs = self._outputs(wanted, range(len(wanted) + 1), hidden.expand(len(wanted), -1))
            return weighted_sums(outputs, weights, None, onto)
        counts, rows, places = grouped(chosen, len(self.router.gate))
        wanted = [index for index, count in enumerate(counts) if count]
        ends = [0, *accumulate(counts[index] for index in wanted)]
        return weighted_sums(self._outputs(wanted, ends, hidden[rows]), weights, places, onto)

    def activation_of(self, index: int) -> Gated:
        """Return what one expert makes of its first two products."""
        return self.activation if self.biases is None else self.biases.activations[index]

    def output(self, index: int, expert: Expert, hidden: torch.Tensor) -> torch.Tensor:
        """Return what one expert makes of `[tokens, hidden]`."""
        output = expert(hidden, self.activation_of(index))
        return output if self.biases is None else output + self.biases.outputs[index]

    def _outputs(self, wanted: Sequence[int], ends: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
        """Return what each of `wanted` makes of its rows, `ends[i] ... ends[i + 1]` of `[rows, hidden]`."""
        assert self.experts is not None
        at_hand = self.experts.at_hand(self.index, wanted)
        if at_hand is not None:
            gates = [self._gate] * len(wanted) if self.biases is None else [self._gates[index] for index in wanted]
            together = run_together(at_hand, ends, rows, gates)
            if together is not None:
                return together if self.biases is None else together + self.biases.of_rows(wanted, ends)
        places = {index: slice(begin, end) for index, (begin, end) in zip(wanted, pairwise(ends), strict=True)}
        shares = [place.stop - place.start for place in places.values()]
        outputs = torch.empty_like(rows, memory_format=torch.contiguous_format)
        arriving = (
            self.experts.fetch(self.index, wanted, shares) if at_hand is None else zip(wanted, at_hand, strict=True)
        )
        for index, expert in arriving:
            outputs[places[index]] = self.output(index, expert, rows[places[index]])
            del expert  # its memory may be given up for the next one
        return outputs


def attach(layers: Sequence[MoELayer], experts: Experts | None) -> None:
    """Let layers, in their order, take experts from `experts`; None lets go of those that there are."""
    for layer, after in zip_longest(layers, layers[1:]):
        layer.experts = experts
        layer.following = after.router if after is not None and experts is not None and experts.looks_ahead else None


def likely(router: Router, hidden: torch.Tensor) -> list[int]:
    """Return which experts a router would choose for `[tokens, hidden]`, those of most weight over all tokens first.

    Neighbouring layers' inputs are alike, so that a router chooses much the same for the input of the layer before.
    """
    weights, chosen = router(hidden)
    total = torch.zeros(router.gate.shape[0], device=hidden.device)
    total.index_add_(0, chosen.flatten(), weights.float().flatten())
    order = total.argsort(descending=True).tolist()
    return order[: int((total > 0).sum())]

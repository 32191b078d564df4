"""Predicted time of a forward pass and of a generation under a plan, from a hardware profile.

One step over `n` tokens takes

    T(n) = D(n) + Σ_layers [ Σ_e u_e · K_b(e)(n_e) + Σ_e u_e · (1 − resident_e) · X_b(e) ]

with `D` the time outside the experts, `u_e = 1 − (1 − f_e)^n` the chance that expert `e` is used at all when each token
is routed to it with frequency `f_e`, `n_e = n·f_e / u_e` the tokens it then gets, `K_b` the time of one expert at `b`
bits and `X_b = latency + bytes_b / bandwidth` the time to bring in a missed one. Where residents change as they are
used, a decode step takes the share of look-ups that are served (`Served`) in place of `resident_e`; in a prefill, which
uses most experts, the plan's residents stand for those that are there. Where reads run beside computation (one after
another, hits computed first), a layer with a miss takes the longer of all computation and of all reads with the last
miss's computation. A generation of `m` tokens is one prefill and `m − 1` decode steps; its speed counts the `m` new
tokens over all of that time. The structure is that of arXiv 2407.14417; frequencies and `K_b` are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lumoe.errors import UserError
from lumoe.moe.planning.hardware import Hardware, Seconds
from lumoe.moe.planning.plan import Plan
from lumoe.moe.planning.shape import ModelShape

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Workload:
    """One request, batch 1: tokens in and tokens out."""

    prompt_tokens: int = 16
    new_tokens: int = 16

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.new_tokens < 1:
            raise UserError(
                f"workload: {self.prompt_tokens} tokens in and {self.new_tokens} out, both must be at least 1"
            )


@dataclass(frozen=True)
class Prediction:
    """Seconds of the two kinds of step and what they add up to."""

    prefill_s: float
    decode_s: float
    tokens_per_s: float


@dataclass(frozen=True, eq=False)
class Served:
    """What a decode step finds where residents change as they are used.

    Attributes:
        found: share of a layer's look-ups that find their expert resident or read ahead, `[L]`.
        ahead: experts that a step reads ahead for a layer, `[L]`, needed or not.
    """

    found: ArrayLike
    ahead: ArrayLike = 0.0


def seconds_at(times: Seconds, tokens: ArrayLike) -> FloatArray:
    """Time of an operation over `tokens` (any shape), linear between and beyond the profile's entries."""
    wanted = np.asarray(tokens, dtype=float)
    if len(times.tokens) == 1:
        return np.full(wanted.shape, times.seconds[0])
    x, y = np.array(times.tokens, dtype=float), np.array(times.seconds)
    cell = np.clip(np.searchsorted(x, wanted) - 1, 0, len(x) - 2)
    slope = np.diff(y)[cell] / np.diff(x)[cell]
    return np.asarray(np.maximum(y[cell] + slope * (wanted - x[cell]), 0.0))


def transfer_seconds(hardware: Hardware, size: ArrayLike) -> FloatArray:
    """Time to bring `size` bytes (any shape) of one expert from the slow to the fast tier."""
    transfer = hardware.transfer
    return transfer.latency_s.value + np.asarray(size, dtype=float) / transfer.bytes_per_s.value


def expert_seconds(hardware: Hardware, shape: ModelShape, bits: int, tokens: ArrayLike) -> FloatArray:
    """Time of one expert at `bits` over `tokens` (any shape).

    Raises:
        UserError: the profile is of a model of other widths, or lacks this precision.
    """
    timed, wanted = (hardware.hidden, hardware.intermediate), (shape.hidden_size, shape.intermediate_size)
    if timed != wanted:
        raise UserError(
            f"hardware profile '{hardware.name}' was measured on a model of widths {timed}, this one has {wanted}: "
            "measure a profile of it with `lumoe moe calibrate`"
        )
    if not hardware.expert:
        return np.zeros(np.shape(tokens))
    if bits not in hardware.expert:
        known = ", ".join(map(str, sorted(hardware.expert)))
        raise UserError(f"hardware profile '{hardware.name}' has no time for experts at {bits} bits; it has {known}")
    return seconds_at(hardware.expert[bits], tokens)


def uniform_frequencies(shape: ModelShape) -> FloatArray:
    """Balanced routing: every expert of `[L, E]` gets a token with chance k/E."""
    return np.full(shape.plan_shape, shape.num_experts_per_tok / shape.num_local_experts)


def usage(frequencies: ArrayLike, tokens: int) -> tuple[FloatArray, FloatArray]:
    """Return the chance that an expert is used by a step of `tokens` tokens, and the tokens it gets when it is."""
    chance = np.asarray(frequencies, dtype=float)
    used = 1.0 - (1.0 - chance) ** tokens
    return used, np.divide(tokens * chance, used, out=np.ones_like(used), where=used > 0)


def layer_seconds(
    *,
    compute: FloatArray,
    misses: FloatArray,
    miss_compute: FloatArray,
    read: FloatArray,
    hit_share: FloatArray,
    look_ups: int,
    overlapped: bool,
) -> FloatArray:
    """Expected time of a layer's experts; arrays of one shape.

    Args:
        compute: expected computation of all experts used.
        misses, miss_compute, read: expected number of misses, their computation, their reading.
        hit_share: chance that a look-up finds its expert resident.
        look_ups: look-ups of the step in a layer, k for each token.
    """
    if not overlapped:
        return compute + read
    any_miss, all_miss = 1.0 - hit_share**look_ups, (1.0 - hit_share) ** look_ups
    one_compute, one_read, reads = (
        np.divide(total, number, out=np.zeros_like(read), where=number > 0)
        for total, number in ((miss_compute, misses), (read, misses), (read, any_miss))
    )
    # What computation does not hide of the reads: their excess, or the first one where there is no hit to compute.
    exposed = np.maximum(any_miss * (reads + one_compute - compute), all_miss * one_read)
    return np.asarray(compute + exposed)


def tokens_per_second(prefill_s: ArrayLike, decode_s: ArrayLike, workload: Workload) -> FloatArray:
    """New tokens over the time of one prefill and the decode steps that follow it."""
    total = np.asarray(prefill_s, dtype=float) + (workload.new_tokens - 1) * np.asarray(decode_s, dtype=float)
    return np.asarray(workload.new_tokens / total)


@dataclass(frozen=True, eq=False)
class CostModel:
    """A model on a machine, as times.

    Attributes:
        bytes_of: bits per weight -> bytes of one expert.
        workload: the request whose generation `predict` times.
        frequencies: `[L, E]`, chance that a token is routed to the expert (rows sum to top-k); balanced if None.
        scaled_from: widths of the model that the profile was measured on, where it was another one.
    """

    hardware: Hardware
    shape: ModelShape
    bytes_of: Mapping[int, int]
    workload: Workload = Workload()
    frequencies: ArrayLike | None = None
    scaled_from: tuple[int, int] | None = None

    def check(self, precisions: Iterable[int]) -> None:
        """Raise unless experts of these precisions can be timed.

        Raises:
            UserError: the profile is of a model of other widths, or lacks a precision.
        """
        for bits in precisions:
            expert_seconds(self.hardware, self.shape, bits, 1)

    def predict(self, plan: Plan, served: Served | None = None) -> Prediction:
        """Predict a generation under `plan`.

        Args:
            served: what decode steps find, where that is not what the plan makes resident.

        Raises:
            UserError: the profile is of a model of other widths, or lacks one of the plan's precisions.
        """
        prefill, decode = self.step_seconds(plan, self.workload.prompt_tokens), self.step_seconds(plan, 1, served)
        return Prediction(prefill, decode, float(tokens_per_second(prefill, decode, self.workload)))

    def step_seconds(self, plan: Plan, tokens: int, served: Served | None = None) -> float:
        """Expected time of one forward pass over `tokens` tokens under `plan`.

        Args:
            served: what it finds, where that is not what the plan makes resident.
        """
        hardware, shape = self.hardware, self.shape
        balanced = self.frequencies is None
        chance = uniform_frequencies(shape) if balanced else np.asarray(self.frequencies, dtype=float)
        used, share = usage(chance, tokens)
        compute = np.zeros(plan.shape)
        for bits in np.unique(plan.bits).tolist():
            here = plan.bits == bits
            compute[here] = expert_seconds(hardware, shape, bits, share[here])
        if served is None:
            away, found = used * ~plan.resident, (chance * plan.resident).sum(axis=1) / chance.sum(axis=1)
        else:
            # Which experts are missed is not known: each in proportion to its use.
            found = np.broadcast_to(np.asarray(served.found, dtype=float), (plan.shape[0],))
            away = used * (1.0 - found)[:, None]
        each = transfer_seconds(hardware, plan.expert_bytes(self.bytes_of))
        layers = layer_seconds(
            compute=(used * compute).sum(axis=1),
            misses=away.sum(axis=1),
            miss_compute=(away * compute).sum(axis=1),
            read=(away * each).sum(axis=1),
            hit_share=found,
            look_ups=tokens * shape.num_experts_per_tok,
            overlapped=hardware.transfer.overlapped,
        )
        dense = float(seconds_at(hardware.dense, tokens))
        if served is not None:
            one_read = (used * each).sum(axis=1) / used.sum(axis=1)
            layers = layers + self._ahead_seconds(
                np.asarray(served.ahead) * one_read, (used * compute).sum(axis=1), dense
            )
        return dense + float(layers.sum())

    def _ahead_seconds(self, read: FloatArray, compute: FloatArray, dense: float) -> FloatArray:
        """Return what a layer waits for reads of `read` seconds that began when the layer before chose its experts.

        Args:
            compute: of that layer's experts.
            dense: the time outside the experts, of which a layer has its part.
        """
        if not self.hardware.transfer.overlapped:
            return read
        return np.asarray(np.maximum(read - compute - dense / self.shape.num_hidden_layers, 0.0))

    def replayed_seconds(self, bits: int, late: ArrayLike, ahead: ArrayLike) -> float:
        """Return the mean time of decode steps whose every miss is known, all experts at `bits`.

        Args:
            late: experts that a token's layer misses and that were not read ahead, `[tokens, L]`.
            ahead: experts that were read ahead for it, `[tokens, L]`.
        """
        hardware, shape = self.hardware, self.shape
        misses = np.asarray(late, dtype=float)
        one = float(expert_seconds(hardware, shape, bits, 1))
        read = float(transfer_seconds(hardware, self.bytes_of[bits]))
        compute, dense = np.array(shape.num_experts_per_tok * one), float(seconds_at(hardware.dense, 1))
        missed = (misses > 0).astype(float)
        layers = compute + misses * read
        if hardware.transfer.overlapped:
            none_near = misses == shape.num_experts_per_tok
            layers = compute + np.maximum(missed * (misses * read + one - compute), none_near * read)
        layers = layers + self._ahead_seconds(np.asarray(ahead, dtype=float) * read, compute, dense)
        return dense + float(layers.sum(axis=1).mean())

    def count_step_seconds(
        self, tokens: int, held: Mapping[int, ArrayLike], resident: Mapping[int, ArrayLike]
    ) -> FloatArray:
        """Expected step time when only numbers of experts are given, routing balanced and places random.

        Args:
            held: bits -> number of experts of the whole model at that precision, arrays that broadcast.
            resident: bits -> how many of these are resident.

        Returns:
            Seconds, in the arrays' common shape. Where reads overlap, an average layer stands for all.
        """
        hardware, shape = self.hardware, self.shape
        layers, top_k = shape.num_hidden_layers, shape.num_experts_per_tok
        used, share = usage(top_k / shape.num_local_experts, tokens)
        compute, misses, miss_compute, read, near = (np.zeros(()) for _ in range(5))
        for bits in held:
            seconds = expert_seconds(hardware, shape, bits, share)
            have = np.asarray(resident[bits], dtype=float)
            away = used * (np.asarray(held[bits], dtype=float) - have) / layers
            compute = compute + used * np.asarray(held[bits], dtype=float) * seconds / layers
            misses = misses + away
            miss_compute = miss_compute + away * seconds
            read = read + away * transfer_seconds(hardware, self.bytes_of[bits])
            near = near + have
        layer = layer_seconds(
            compute=compute,
            misses=misses,
            miss_compute=miss_compute,
            read=read,
            hit_share=near / shape.experts,
            look_ups=tokens * top_k,
            overlapped=hardware.transfer.overlapped,
        )
        return np.asarray(float(seconds_at(hardware.dense, tokens)) + layers * layer)

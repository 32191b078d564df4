"""Micro-benchmarks of this machine: the few numbers from which the cost model predicts tokens per second.

Nothing here times a generation: what the model predicts from these numbers is a prediction.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice

import numpy as np
import torch

from lumoe.machine import cpu_name
from lumoe.moe.engine.engine import Engine
from lumoe.moe.kernels import native
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.model.activation import Gated, swiglu
from lumoe.moe.model.expert import DenseExpert, Expert, NativeExpert
from lumoe.moe.model.linear import GROUP
from lumoe.moe.offload.file_experts import ExpertSource
from lumoe.moe.planning.hardware import Hardware, Seconds, Sourced, Transfer
from lumoe.moe.planning.plan import FULL_BITS, Plan
from lumoe.progress import track

TOKENS = (1, 2, 4, 8, 16)
STEP_TOKENS = (1, 4, 16, 64)
CPU = torch.device("cpu")
# Experts that are timed in turn: at least so many, and so many bytes where a model has them.
_EXPERTS_IN_TURN = 4
_TURN_BYTES = 256 << 20
# Hidden and intermediate width of an expert that every machine is timed on, beside those of the model.
LARGE = (1024, 3584)
_BY = "measured by `lumoe moe calibrate`"


def measure_hardware(
    engine: Engine,
    bits: Sequence[int],
    name: str,
    least_s: float = 0.3,
    tokens: Sequence[int] = TOKENS,
    step_tokens: Sequence[int] = STEP_TOKENS,
) -> Hardware:
    """Time experts, reads of missed experts, and everything outside the experts, each for at least `least_s` seconds.

    Args:
        engine: gives the widths, the type of the activations and the slow tier; its plan is changed.
        bits: precisions that experts are timed at.
        tokens, step_tokens: numbers of tokens that experts, and everything outside the experts, are timed over.
    """
    source, shape = engine.store.source, engine.decoder.architecture
    expert, large, sizes, reads = {}, {}, [], []
    for value in track(sorted(bits), "precisions timed"):
        expert[value] = _seconds(tokens, time_experts(engine, some_experts(engine, value), tokens, least_s))
        if others := large_experts(engine, value):
            large[value] = _seconds(tokens, time_experts(engine, others, tokens, least_s, LARGE[0]))
            del others  # room for the next precision's
        sizes.append(source.nbytes(value))
        reads.append(time_misses(engine, value, expert[value].seconds[0], least_s))
    latency, rate = fit_line(sizes, reads)
    if engine.device.type == "cuda":
        memory, whose = torch.cuda.get_device_properties(engine.device).total_memory, "memory of the GPU"
    else:
        memory, whose = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "physical memory of this machine"
    return Hardware(
        name=name,
        device=describe_device(engine.device),
        fast_bytes=Sourced(value=memory, source=whose, confidence="measured"),
        transfer=Transfer(
            latency_s=Sourced(value=latency, source=_BY, confidence="measured"),
            bytes_per_s=Sourced(value=rate, source=_BY, confidence="measured"),
            overlapped=True,
        ),
        dense=_seconds(step_tokens, time_dense(engine, step_tokens, least_s)),
        expert=expert,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        outside=shape.outside_parameters_per_token,
        stored=source.stored_as,
        layers=shape.num_hidden_layers,
        large=large,
        large_weights=3 * LARGE[0] * LARGE[1] if large else None,
    )


def some_experts(engine: Engine, bits: int) -> list[Expert]:
    """Bring in experts of all layers in turn: together larger than a cache, so that none is found there again."""
    source, tier = engine.store.source, engine.store.tier
    layers, each = engine.plan.shape
    most = max(_EXPERTS_IN_TURN, _TURN_BYTES // source.nbytes(bits))
    experts = []
    for place in range(min(most, layers * each)):
        layer, index = place % layers, place // layers
        record = source.record(layer, index, bits)
        buffer = tier.allocate(record.nbytes)
        tier.submit(buffer, tier.load, buffer, record).result()
        experts.append(source.build(layer, index, bits, buffer.tensors(record)))
    return experts


def large_experts(engine: Engine, bits: int) -> list[Expert]:
    """Make random experts of the widths LARGE for the kernel that the model's experts at `bits` run on.

    They are together larger than a cache. On a GPU, and for other kernels than this package's, there are none.
    """
    source = engine.store.source
    if not isinstance(source, ExpertSource) or source.kernel(bits) not in ("dense", "native"):
        return []
    hidden, wide = LARGE
    generator = torch.Generator().manual_seed(0)
    shapes = {"w1": (wide, hidden), "w2": (hidden, wide), "w3": (wide, hidden)}
    made = {name: torch.randn(shape, generator=generator) / hidden**0.5 for name, shape in shapes.items()}
    affine, held = source.kernel(bits) == "native", bits if bits in source.quantized else 4
    if affine:
        group = source.quantized[bits].group_size if bits in source.quantized else GROUP
        tensors = native.expert_tensors(*(nearest(weight, held, group) for weight in made.values()))
    else:
        tensors = {name: weight.to(engine.decoder.dtype) for name, weight in made.items()}
    copies = -(-_TURN_BYTES // sum(tensor.nbytes for tensor in tensors.values()))
    each = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(copies)]
    return [NativeExpert(copy, held) if affine else DenseExpert(copy) for copy in each]


@torch.inference_mode()
def time_experts(
    engine: Engine, experts: Sequence[Expert], tokens: Sequence[int], least_s: float, width: int | None = None
) -> list[float]:
    """Return the median seconds of one of `experts` for each number of tokens.

    As many as a token needs in a layer are timed together, others each time; between them what surrounds the experts
    runs, untimed: in a generation it is that which the caches hold then.

    Args:
        width: of the experts' input; that of the model if None.
    """
    shape = engine.decoder.architecture
    k, width = shape.num_experts_per_tok, width or shape.hidden_size
    order = cycle(np.random.default_rng(0).permutation(len(experts)).tolist())
    surroundings, results = _surroundings(engine), []
    for count in tokens:
        hidden = torch.randn(count, width).to(engine.device, engine.decoder.dtype)

        def run(hidden: torch.Tensor = hidden) -> None:
            for index in islice(order, k):
                experts[index](hidden)
            engine.finish()

        results.append(median_seconds(run, least_s / 3, between=surroundings) / k)
    return results


@torch.inference_mode()
def time_misses(engine: Engine, bits: int, expert_s: float, least_s: float) -> float:
    """Return the median seconds that bringing in one missed expert takes while others compute.

    All experts of one token in a layer are missed and computed as they come. Reads follow one another and all but the
    last expert compute meanwhile, as in the cost model: the time of k of them is k reads and one computation.

    Args:
        expert_s: seconds of one expert on one token.
    """
    shape, store = engine.decoder.architecture, engine.store
    layers, experts = engine.plan.shape
    k = shape.num_experts_per_tok
    engine.reconfigure(Plan.uniform(layers, experts, bits, resident=False))
    hidden = torch.randn(1, shape.hidden_size).to(engine.device, engine.decoder.dtype)
    places = [(layer, range(first, first + k)) for first in range(0, experts - k + 1, k) for layer in range(layers)]
    in_turn = cycle(places[: 4 * _EXPERTS_IN_TURN])

    def run() -> None:
        layer, wanted = next(in_turn)
        for _, expert in store.fetch(layer, wanted):
            expert(hidden)
        engine.finish()

    for _ in places[: 4 * _EXPERTS_IN_TURN]:
        run()  # the first reading also lays out and checks
    surroundings = _surroundings(engine)
    return max(median_seconds(run, least_s, between=surroundings) - expert_s, 0.0) / k


def _surroundings(engine: Engine) -> Callable[[], None]:
    """Return what surrounds the experts of one token, to be run between them: the caches then hold what they would."""
    ids, cache = torch.zeros((1, 1), dtype=torch.int64), engine.cache(1, 1)

    def run() -> None:
        with engine.store.stand_in(_same):
            cache.lengths[0] = 0
            engine.step(ids, cache)
            engine.finish()

    return run


def time_dense(engine: Engine, tokens: Sequence[int], least_s: float) -> list[float]:
    """Return the median seconds of a forward pass whose experts return their input, for each number of tokens.

    Between two passes the experts of one token compute, untimed: in a generation it is they that the caches hold then.
    """
    store, shape = engine.store, engine.decoder.architecture
    experts = some_experts(engine, FULL_BITS)[: len(shape.moe_layers) * shape.num_experts_per_tok]
    hidden = torch.randn(1, shape.hidden_size).to(engine.device, engine.decoder.dtype)

    @torch.inference_mode()
    def one_token() -> None:
        for expert in experts:
            expert(hidden)
        engine.finish()

    results = []
    with store.stand_in(_same):
        for count in track(tokens, "numbers of tokens timed outside the experts"):
            # Different tokens, as in a text: they are routed to different experts.
            ids = torch.arange(count).unsqueeze(0) % shape.vocab_size
            cache = engine.cache(1, count)

            def run(ids: torch.Tensor = ids, cache: object = cache) -> None:
                cache.lengths[0] = 0  # type: ignore[attr-defined]
                engine.step(ids, cache)  # type: ignore[arg-type]
                engine.finish()

            results.append(median_seconds(run, least_s, between=one_token))
    return results


def _same(hidden: torch.Tensor, activation: Gated = swiglu) -> torch.Tensor:
    return hidden


def median_seconds(
    run: Callable[[], object], least_s: float, least_calls: int = 5, between: Callable[[], object] | None = None
) -> float:
    """Call `run` for at least `least_s` seconds and `least_calls` times; return the median of its times.

    Args:
        between: called before each of them, untimed.
    """
    run()
    times: list[float] = []
    while sum(times) < least_s or len(times) < least_calls:
        if between is not None:
            between()
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Return latency in s and rate in bytes/s of `seconds = latency + size / rate`, least squares, neither negative."""
    x, y = np.asarray(sizes, dtype=float), np.asarray(seconds)
    slope, latency = np.polyfit(x, y, 1) if len({*sizes}) > 1 else (0.0, 0.0)
    if slope <= 0 or latency < 0:
        return 0.0, float(x.sum() / y.sum())
    return float(latency), float(1 / slope)


def describe_device(device: torch.device = CPU) -> str:
    """Name the GPU, or the processor and the threads that torch uses."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{cpu_name()}, {torch.get_num_threads()} threads"


def _seconds(tokens: Sequence[int], seconds: Sequence[float]) -> Seconds:
    return Seconds(tokens=list(tokens), seconds=list(seconds), source=_BY, confidence="measured")

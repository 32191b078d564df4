"""Micro-benchmarks of the device, from which the cost model predicts the sweep; nothing is fitted to the sweep."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.true_scale import machine
from benchmarks.true_scale.model import BITS, check_kernel
from lumoe.files import read_json, write_csv, write_json
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, OpenedModel
from lumoe.moe.measurement.profile import measure_hardware, median_seconds
from lumoe.moe.model.cuda_graphs import recorder_for
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import DeviceTier
from lumoe.moe.offload.host_experts import DeviceExperts
from lumoe.moe.planning.hardware import Hardware, Seconds, Sourced
from lumoe.moe.planning.plan import FULL_BITS, Plan

COLUMNS = ("quantity", "tokens", "value", "unit", *machine.COLUMNS, "basis")
TOKENS = (1, 2, 4, 8, 16, 32, 64)
STEP_TOKENS = (1, 4, 16, 64, 256)
HOST_TOKENS = (1, 2, 4, 8, 16)
_BY = "measured by `python -m benchmarks.true_scale micro`"
# Large against every cache, small against the device.
COPIED = 1 << 30


def paths(folder: Path) -> dict[str, Path]:
    """Return where the profile of each kind of scheme is kept."""
    return {kind: folder / f"true_scale_machine_{kind}.json" for kind in ("eager", "recorded")}


def read_profiles(folder: Path) -> dict[str, Hardware] | None:
    """Return the profiles that an earlier command measured, or None."""
    found = paths(folder)
    if not all(path.is_file() for path in found.values()):
        return None
    return {kind: Hardware.model_validate(read_json(path)) for kind, path in found.items()}


def measure(
    decoder: StaticDecoder, experts: DeviceExperts, about: dict[str, str], folder: Path, least_s: float
) -> dict[str, Hardware]:
    """Measure, write and return the two profiles: without and with recorded pieces between the experts."""
    device, layers, count = decoder.device, *decoder.architecture.plan_shape
    noise, decoder.noise = decoder.noise, None
    host = measure_host(experts, least_s)
    found = {}
    try:
        for kind, recorder in (("eager", None), ("recorded", recorder_for(device))):
            decoder.recorder = recorder
            model = OpenedModel(decoder, experts, DeviceTier(experts), EngineConfig())
            engine = Engine(model, Plan.uniform(layers, count, resident=False))
            profile = measure_hardware(engine, [BITS, FULL_BITS], f"true-scale-{kind}", least_s, TOKENS, STEP_TOKENS)
            found[kind] = _complete(profile, engine, host, about, kind)
    finally:
        decoder.noise = noise
    for kind, path in paths(folder).items():
        write_json(path, found[kind].model_dump(mode="json"))
    rows = [("int4 relative error", 4, check_kernel(device), "fraction"), *bandwidths(device, experts, least_s)]
    for kind, profile in found.items():
        rows += [
            (f"dense step, {kind}", *pair, "s")
            for pair in zip(profile.dense.tokens, profile.dense.seconds, strict=True)
        ]
    rows += [("expert copy latency", 0, found["eager"].transfer.latency_s.value, "s")]
    rows += [("expert copy rate", 0, found["eager"].transfer.bytes_per_s.value, "B/s")]
    for where, times in (("device", found["eager"].expert), ("host", host)):
        for bits, series in times.items():
            rows += [
                (f"{bits}-bit expert on the {where}", *p, "s") for p in zip(series.tokens, series.seconds, strict=True)
            ]
    table = pd.DataFrame(rows, columns=list(COLUMNS[:4])).assign(**about, basis="measured")
    write_csv(folder / "true_scale_micro.csv", table, COLUMNS)
    return found


def measure_host(experts: DeviceExperts, least_s: float) -> dict[int, Seconds]:
    """Time 16-bit experts that compute in host memory, their input and output on the device."""
    rested = [experts.on_host(0, index, FULL_BITS) for index in range(min(4, experts.shape.num_local_experts))]
    seconds = []
    for count in HOST_TOKENS:
        hidden = torch.randn(count, experts.shape.hidden_size).to(experts.device, experts.dtype)

        def run(hidden: torch.Tensor = hidden) -> None:
            for expert in rested:
                expert(hidden).sum().item()

        seconds.append(median_seconds(run, least_s) / len(rested))
    return {FULL_BITS: Seconds(tokens=list(HOST_TOKENS), seconds=seconds, source=_BY, confidence="measured")}


def bandwidths(device: torch.device, experts: DeviceExperts, least_s: float) -> list[tuple[str, int, float, str]]:
    """Return the rate of copies within the device (bytes read and written) and from pinned host memory to it."""
    size = min(COPIED, 64 * experts.nbytes(FULL_BITS))
    source = torch.empty(size, dtype=torch.uint8, device=device).random_(0, 256)
    target = torch.empty_like(source)
    record = experts.record(0, 0, FULL_BITS)
    within = _seconds(lambda: target.copy_(source), device, least_s)
    link = _seconds(lambda: target[: record.nbytes].copy_(record.bytes, non_blocking=True), device, least_s)
    return [("device memory", 0, 2 * size / within, "B/s"), ("host to device", 0, record.nbytes / link, "B/s")]


def _seconds(work: Callable[[], object], device: torch.device, least_s: float) -> float:
    """Return the median time of `work`, by the device's own clock where it has one."""
    if device.type != "cuda":
        return median_seconds(work, least_s)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    work()
    began = time.perf_counter()
    while time.perf_counter() - began < least_s or len(times) < 5:
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return float(np.median(times))


def _complete(
    profile: Hardware, engine: Engine, host: dict[int, Seconds], about: dict[str, str], kind: str
) -> Hardware:
    """Say what was measured: the device's memory, not the host's; whose copies run beside computation."""
    changes: dict[str, object] = {"device": f"{about['device']}; host {about['host']}", "host": host}
    if engine.device.type == "cuda":
        memory = torch.cuda.get_device_properties(engine.device).total_memory
        changes["fast_bytes"] = Sourced(value=memory, source="the device's properties", confidence="measured")
    changes["transfer"] = profile.transfer.model_copy(update={"overlapped": kind == "recorded"})
    return profile.model_copy(update=changes)

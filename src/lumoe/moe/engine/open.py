"""Open a model where it is to run: its sizes are known then, before any plan and before any engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lumoe.errors import UserError
from lumoe.moe.checkpoint.reads import READS
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine import device
from lumoe.moe.model.base import Decoding
from lumoe.moe.model.cuda_graphs import recorder_for
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import DeviceTier, pin_memory
from lumoe.moe.offload.file_experts import ExpertSource
from lumoe.moe.offload.file_tier import READERS, FileTier
from lumoe.moe.offload.host_experts import DeviceExperts, checkpoint_writer
from lumoe.moe.offload.storage import spill_folder
from lumoe.moe.offload.store import SWAP_BUFFERS, buffers, bytes_needed
from lumoe.moe.offload.tier import Source, Tier
from lumoe.moe.planning.caching import CachePolicy, Caching
from lumoe.moe.planning.placement import fill
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan
from lumoe.moe.quantization.folder import QuantizedExperts, read_frequencies

Folders = str | Path | Sequence[str | Path] | None


@dataclass(frozen=True)
class EngineConfig:
    """How a model runs, whatever its plan.

    Attributes:
        device: cpu, cuda or cuda:N.
        dtype: type of the activations; float32 is for reference runs and expands quantised weights.
        policy: static, lru or lfru: what happens to a missed expert after use. A `Caching` says more: whose place it
            may take, and how many experts are read ahead.
        swap_buffers: experts that may be on their way at once.
        spill: folder for a nameless file of experts in their kernel's layout; by default where the experts are.
        native: on the processor, run on this package's own kernels where they can be compiled.
        non_expert_bits: 16, or on the processor 4 to round attention's and the vocabulary's projections to nearest.
        recorded: on a GPU, record decode steps as CUDA graphs, one for every set of sequences that decode together.
        beside_bytes: of a GPU's memory, what the caller will take for itself.
        kv_bits: 16 stores keys and values as they are; 8, on the processor, rounds them to 8-bit integers with a scale
            for each head's vector.
        readers: on the processor, threads that share the read of an expert; see benchmarks/reads.py.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    policy: CachePolicy | Caching = "static"
    swap_buffers: int = SWAP_BUFFERS
    spill: str | Path | None = None
    native: bool = True
    non_expert_bits: int = FULL_BITS
    recorded: bool = True
    beside_bytes: int = 0
    kv_bits: int = FULL_BITS
    readers: int = READERS

    @property
    def caching(self) -> Caching:
        """How the fast tier changes while it is used.

        Raises:
            UserError: there is no such policy.
        """
        return Caching.of(self.policy)

    @property
    def buffers(self) -> int:
        """Buffers beside the residents, each as large as the largest expert that may be missed."""
        return buffers(self.swap_buffers, self.caching)


class Opening:
    """What it costs to open a model: counted from when this is made, in bytes that the whole process reads.

    Attributes:
        outside: bytes read of the weights outside the experts, once they are there.
    """

    def __init__(self) -> None:
        self._began, self._weights, self._checked = time.perf_counter(), READS.weights, READS.checked
        self.outside = 0

    def outside_is_there(self) -> None:
        """Take all that was read so far for weights outside the experts."""
        self.outside = READS.weights - self._weights

    @property
    def experts(self) -> int:
        """Bytes read of experts until now."""
        return READS.weights - self._weights - self.outside

    def __str__(self) -> str:
        seconds, checked = time.perf_counter() - self._began, READS.checked - self._checked
        sums = f"; {checked} bytes held to the manifest's sums before" if checked else ""
        return (
            f"opened in {seconds:.2f} s: {self.outside + self.experts} bytes read (outside the experts {self.outside}, "
            f"experts {self.experts}){sums}"
        )


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """The weights outside the experts where they compute, and every expert on the slow tier; none is in the fast one.

    It drives one engine at a time.

    Attributes:
        decoder: weights outside the experts, and the forward pass.
        source: the experts, at every precision that there is.
        tier: the fast tier that an engine brings them into.
        limit_bytes: what the device has for experts and swap buffers; None where nothing but the budget limits them.
        opening: what opening it cost so far.
        frequencies: `[L, E]`, how often calibration text was routed to each expert; None if it is not known or nothing
            goes by it.
    """

    decoder: Decoding
    source: Source[Any]
    tier: Tier[Any, Any]
    config: EngineConfig
    limit_bytes: int | None = None
    opening: Opening = field(default_factory=Opening)
    frequencies: NDArray[np.float64] | None = None

    @property
    def plan_shape(self) -> tuple[int, int]:
        """(layers, experts per layer)."""
        return self.decoder.architecture.plan_shape

    @property
    def memory(self) -> Memory:
        """What the parts of this model really take, for planning."""
        sizes = {bits: self.source.nbytes(bits) for bits in self.source.precisions}
        block = self.decoder.architecture.kv_block_bytes(self.config.dtype.itemsize, self.config.kv_bits)
        return Memory(
            sizes, self.decoder.nbytes, swap_buffers=self.config.buffers, kv_block=block, stored=self.source.stored_as
        )

    @property
    def whole_bytes(self) -> int:
        """Bytes of the model with every expert at 16 bits: what a budget in % refers to."""
        layers, experts = self.plan_shape
        return self.decoder.nbytes + layers * experts * self.source.nbytes(FULL_BITS)

    @property
    def most_bytes(self) -> int | None:
        """Bytes of weights that the fast tier can hold at most; None where nothing but the budget limits them."""
        return None if self.limit_bytes is None else self.decoder.nbytes + self.limit_bytes

    def bytes_needed(self, plan: Plan) -> int:
        """Bytes of the fast tier that `plan` takes: all weights outside the experts, residents, swap buffers."""
        return self.decoder.nbytes + bytes_needed(self.source, plan, self.config.buffers)

    def fitted(self, plan: Plan, budget_bytes: int | None = None) -> Plan:
        """Return `plan`; without a budget, without the residents that the device has no memory for: small ones stay."""
        if budget_bytes is not None or self.most_bytes is None or self.bytes_needed(plan) <= self.most_bytes:
            return plan
        sizes = self.memory.expert
        swap = self.config.buffers * max(sizes[bits] for bits in np.unique(plan.bits).tolist())
        left = self.most_bytes - self.decoder.nbytes - swap
        return Plan(plan.bits, plan.resident & fill(plan.bits, left, sizes))

    def left_for_experts(self, budget_bytes: int | None) -> int | None:
        """Return what a budget leaves beside the weights outside the experts; None where there is no budget.

        Raises:
            UserError: it does not even hold those, or the device cannot hold what it allows.
        """
        if budget_bytes is None:
            return None
        if self.most_bytes is not None and budget_bytes > self.most_bytes:
            raise UserError(
                f"a budget of {budget_bytes} bytes exceeds the {self.most_bytes} that {self.decoder.device} has for "
                "weights"
            )
        if budget_bytes < self.decoder.nbytes:
            raise UserError(
                f"a budget of {budget_bytes} bytes does not hold the {self.decoder.nbytes} bytes outside the experts"
            )
        return budget_bytes - self.decoder.nbytes


def open_model(model: str | Path, quantized: Folders = None, config: EngineConfig | None = None) -> OpenedModel:
    """Open a checkpoint.

    On the processor the fast tier is RAM and the slow one the checkpoint's files. On a GPU the fast tier is its memory
    and the slow one pinned host memory: every expert that a plan has asked for stays there, at each of its precisions.

    Args:
        model: folder of a checkpoint, or a GGUF file.
        quantized: folder or folders that `lumoe moe quantize` wrote.

    Raises:
        UserError: the device is absent, or a file is missing or damaged.
    """
    config, opening = config or EngineConfig(), Opening()
    config.caching  # noqa: B018 - an unknown policy is refused before anything is read
    folders = [quantized] if isinstance(quantized, str | Path) else list(quantized or [])
    checkpoint, experts = Checkpoint(model), [QuantizedExperts(folder) for folder in folders]
    if config.device != "cpu":
        return open_on_device(checkpoint, experts, config, opening)
    frequencies = _frequencies(experts, checkpoint, config)
    spill = spill_folder(config.spill, [*folders, model])
    source = ExpertSource(checkpoint, experts, config.dtype, spill, config.native)
    source.check_savings()
    decoder = Decoder(checkpoint, config.dtype, config.non_expert_bits, config.native)
    opening.outside_is_there()
    return OpenedModel(
        decoder, source, FileTier(readers=config.readers), config, opening=opening, frequencies=frequencies
    )


def _frequencies(
    quantized: Sequence[QuantizedExperts], checkpoint: Checkpoint, config: EngineConfig
) -> NDArray[np.float64] | None:
    """Return what calibration counted, where the policy begins with it and there is a quantised folder to ask."""
    if config.caching.policy != "lfru" or not quantized:
        return None
    return read_frequencies(quantized[0].folder, checkpoint.architecture.plan_shape)


def open_on_device(
    checkpoint: Checkpoint,
    quantized: Sequence[QuantizedExperts],
    config: EngineConfig,
    opening: Opening | None = None,
) -> OpenedModel:
    """Open a checkpoint as on a GPU, whatever device it is: experts in host memory, a decoder of fixed shapes.

    Raises:
        UserError: the device is absent, has no kernel for the quantised experts, or these belong to another model.
    """
    place, opening = device.device_of(config.device), opening or Opening()
    if config.non_expert_bits != FULL_BITS:
        raise UserError(
            f"{config.device}: weights outside the experts have 16 bits there, not {config.non_expert_bits}"
        )
    if config.readers != READERS:
        raise UserError(f"{config.device}: experts are copied there, not read; leave readers at {READERS}")
    for folder in quantized:
        folder.check_fits(checkpoint)
        if not folder.affine:
            raise UserError(f"{folder.folder}: {folder.method} has no kernel on a device; quantise with gptq or rtn")
    experts = DeviceExperts(
        checkpoint.architecture,
        {folder.bits: folder.group_size for folder in quantized},
        checkpoint_writer(checkpoint, quantized, place),
        place,
        config.dtype,
        pin_memory if place.type == "cuda" else None,
    )
    recorder = recorder_for(place) if config.recorded else None
    decoder = StaticDecoder(Decoder(checkpoint, config.dtype, from_codes=False), place, recorder)
    opening.outside_is_there()
    free = device.free_bytes(place)
    limit = None if free is None else max(free - device.KEPT_FREE - config.beside_bytes, 0)
    frequencies = _frequencies(quantized, checkpoint, config)
    return OpenedModel(decoder, experts, DeviceTier(experts), config, limit, opening, frequencies)

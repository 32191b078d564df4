"""An engine whose fast tier is a device's memory and whose slow tier is host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine, Reconfiguration, left_for_experts
from lumoe.moe.model.cuda_graphs import recorder_for
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import DeviceTier, pin_memory
from lumoe.moe.offload.host_experts import DeviceExperts, checkpoint_writer
from lumoe.moe.offload.miss_cost import MissCosts
from lumoe.moe.offload.store import SWAP_BUFFERS, ExpertStore, Policy
from lumoe.moe.planning.placement import fill
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.folder import QuantizedExperts

# Of a GPU's memory: for activations, keys and values, logits and recorded graphs.
KEPT_FREE = 4 << 30


class DeviceEngine(Engine):
    """An engine on a device; everything else is as on the CPU."""

    def __init__(self, decoder: StaticDecoder, store: ExpertStore, tier: DeviceTier, beside_bytes: int = 0) -> None:
        super().__init__(decoder, store)
        self._tier = tier
        free = free_bytes(decoder.device)
        self._room = None if free is None else max(free + store.bytes_fast - KEPT_FREE - beside_bytes, 0)

    @property
    def most_bytes(self) -> int | None:
        """Bytes of weights that the device holds at most; None where nothing but the budget limits them."""
        return None if self._room is None else self.decoder.nbytes + self._room

    def reconfigure(self, plan: Plan, budget_bytes: int | None = None) -> Reconfiguration:
        """Change to `plan` as `Engine.reconfigure`; without a budget, with as many residents as the device holds."""
        self.check_budget(budget_bytes)
        return super().reconfigure(plan if budget_bytes is not None else self.fitted(plan), budget_bytes)

    def fitted(self, plan: Plan) -> Plan:
        """Return `plan`, without the residents that the device has no memory for: the smallest experts stay."""
        if self._room is None or self.store.bytes_needed(plan) <= self._room:
            return plan
        sizes = self.memory.expert
        swap = self.store.swap_buffers * max(sizes[int(bits)] for bits in set(plan.bits.ravel().tolist()))
        return Plan(plan.bits, plan.resident & fill(plan.bits, self._room - swap, sizes))

    def finish(self) -> None:
        """Wait until everything that was begun on the device is done."""
        self._tier.streams.finish()


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of a GPU that are free now; None for the processor, whose budget is its user's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def device_of(name: str) -> torch.device:
    """Return the device that `name` means: cpu, cuda or cuda:N.

    Raises:
        UserError: it means none, or the machine has none.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device '{name}' is unknown; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; give cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device '{name}': torch finds no GPU here; `lumoe doctor` says what it sees")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device '{name}': there are only {torch.cuda.device_count()} GPUs")
    # A name for the device itself: tensors on "cuda" and on "cuda:0" are not equal to each other.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def assemble(
    decoder: StaticDecoder,
    experts: DeviceExperts,
    plan: Plan,
    budget_bytes: int | None = None,
    policy: Policy = "static",
    swap_buffers: int = SWAP_BUFFERS,
    overlapped: bool = True,
    costs: MissCosts | None = None,
    beside_bytes: int = 0,
) -> DeviceEngine:
    """Return an engine of a decoder and experts on one device, with the plan's residents loaded.

    Args:
        budget_bytes: bytes of the device for weights outside the experts, residents and swap buffers.
        overlapped, costs: see `DeviceTier`.
        beside_bytes: of a GPU's memory, what the caller will take for itself.

    Raises:
        UserError: the plan does not fit the budget.
    """
    left = left_for_experts(budget_bytes, decoder)
    tier = DeviceTier(experts, overlapped, costs)
    return DeviceEngine(decoder, ExpertStore(experts, plan, left, policy, swap_buffers, tier), tier, beside_bytes)


def load(
    model: str | Path,
    quantized: Sequence[str | Path] = (),
    plan: Plan | None = None,
    budget_bytes: int | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    policy: Policy = "static",
    swap_buffers: int = SWAP_BUFFERS,
    recorded: bool = True,
    beside_bytes: int = 0,
) -> DeviceEngine:
    """Open a checkpoint on a device; arguments as for `Engine.load`.

    Args:
        recorded: whether decode steps are recorded once for every set of sequences that decode together.
        beside_bytes: see `assemble`.

    Raises:
        UserError: the device is absent, a file is missing or damaged, or the plan does not fit the model or the budget.
    """
    place = device_of(device)
    checkpoint = Checkpoint(model)
    folders = [QuantizedExperts(folder) for folder in quantized]
    for folder in folders:
        folder.check_fits(checkpoint)
        if not folder.affine:
            raise UserError(f"{folder.folder}: {folder.method} has no kernel on a device; quantise with gptq or rtn")
    experts = DeviceExperts(
        checkpoint.architecture,
        {folder.bits: folder.group_size for folder in folders},
        checkpoint_writer(checkpoint, folders, place),
        place,
        dtype,
        pin_memory if place.type == "cuda" else None,
    )
    decoder = StaticDecoder(Decoder(checkpoint, dtype), place, recorder_for(place) if recorded else None)
    plan = plan or Plan.uniform(*checkpoint.architecture.plan_shape)
    return assemble(decoder, experts, plan, budget_bytes, policy, swap_buffers, beside_bytes=beside_bytes)

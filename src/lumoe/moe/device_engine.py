"""An engine whose fast tier is a device's memory and whose slow tier is host memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint import Checkpoint
from lumoe.moe.device_experts import DeviceExperts, checkpoint_writer
from lumoe.moe.device_tier import DeviceTier, pin_memory
from lumoe.moe.engine import Engine, left_for_experts
from lumoe.moe.miss_cost import MissCosts
from lumoe.moe.model import Decoder
from lumoe.moe.plan import Plan
from lumoe.moe.quantized import QuantizedExperts
from lumoe.moe.recording import recorder_for
from lumoe.moe.static_decoder import StaticDecoder
from lumoe.moe.store import SWAP_BUFFERS, ExpertStore, Policy


class DeviceEngine(Engine):
    """An engine on a device; everything else is as on the CPU."""

    def __init__(self, decoder: StaticDecoder, store: ExpertStore, tier: DeviceTier) -> None:
        super().__init__(decoder, store)
        self._tier = tier

    def finish(self) -> None:
        """Wait until everything that was begun on the device is done."""
        self._tier.streams.finish()


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
) -> DeviceEngine:
    """Return an engine of a decoder and experts on one device, with the plan's residents loaded.

    Args:
        budget_bytes: bytes of the device for weights outside the experts, residents and swap buffers.
        overlapped, costs: see `DeviceTier`.

    Raises:
        UserError: the plan does not fit the budget.
    """
    left = left_for_experts(budget_bytes, decoder)
    tier = DeviceTier(experts, overlapped, costs)
    return DeviceEngine(decoder, ExpertStore(experts, plan, left, policy, swap_buffers, tier), tier)


def load(
    model: str | Path,
    quantized: Sequence[str | Path] = (),
    plan: Plan | None = None,
    budget_bytes: int | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    policy: Policy = "static",
    swap_buffers: int = SWAP_BUFFERS,
) -> DeviceEngine:
    """Open a checkpoint on a device; arguments as for `Engine.load`.

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
    decoder = StaticDecoder(Decoder(checkpoint, dtype), place, recorder_for(place))
    plan = plan or Plan.uniform(*checkpoint.architecture.plan_shape)
    return assemble(decoder, experts, plan, budget_bytes, policy, swap_buffers)

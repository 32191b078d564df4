"""Where an engine computes: the processor, or a GPU with what its memory holds."""

from __future__ import annotations

import torch

from lumoe.errors import UserError

# Of a GPU's memory: for activations, keys and values, logits and recorded graphs.
KEPT_FREE = 4 << 30


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


def free_bytes(device: torch.device) -> int | None:
    """Return the bytes of a GPU that are free now; None for the processor, whose budget is its user's."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None

"""What is written beside every number: device, driver, versions, commit."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from lumoe.machine import cpu_name, gpus

COLUMNS = ("model", "device", "driver", "host", "torch", "cuda", "transformers", "accelerate", "python", "commit")
ROOT = Path(__file__).parents[2]


def describe(model: str, device: torch.device, commit: str | None) -> dict[str, str]:
    """Return the values of COLUMNS; what is not installed is an empty string."""
    found = gpus() if device.type == "cuda" else []
    return {
        "model": model,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "driver": found[device.index or 0].driver if len(found) > (device.index or 0) else "",
        "host": f"{cpu_name()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "transformers": _version("transformers"),
        "accelerate": _version("accelerate"),
        "python": platform.python_version(),
        "commit": commit or _commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"

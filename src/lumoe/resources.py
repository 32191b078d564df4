"""Where shipped files lie: numbers in `data/` (the package `lumoe.data` once installed), styles in the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def data_path(*parts: str) -> Path:
    """Return the path of a shipped data file, such as ``data_path("devices", "aggressive.yaml")``."""
    return Path(str(files("lumoe.data").joinpath(*parts)))


def package_path(*parts: str) -> Path:
    """Return the path of a file that lies in the package, such as ``package_path("plots", "lumoe.mplstyle")``."""
    return Path(str(files("lumoe").joinpath(*parts)))

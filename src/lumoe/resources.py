"""Where shipped files lie, and whether they are those that were shipped: `data/SHA256SUMS` has the sum of each."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from lumoe.errors import UserError

SUMS = "SHA256SUMS"


def data_path(*parts: str) -> Path:
    """Return the path of a shipped data file, such as ``data_path("devices", "aggressive.yaml")``."""
    try:
        root = Path(str(files("lumoe.data")))
    except ModuleNotFoundError:
        root = Path(__file__).parents[2] / "data"  # a checkout on the path of a Python that has not installed it
    return root.joinpath(*parts)


def package_path(*parts: str) -> Path:
    """Return the path of a file that lies in the package, such as ``package_path("plots", "lumoe.mplstyle")``."""
    return Path(str(files("lumoe").joinpath(*parts)))


def data_sums(folder: Path) -> str:
    """Return the text of SHA256SUMS for a data folder, as `sha256sum` writes it.

    A model's files are in the manifest of its folder; here stands the manifest's own sum.
    """
    found = [*folder.rglob("*.yaml"), *folder.rglob("*.csv")]
    found = [path for path in found if not path.is_relative_to(folder / "models")]
    found += folder.glob("models/*/manifest.json")
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return "".join(f"{_digest(folder / name)}  {name}\n" for name in names)


def verify_shipped(path: Path) -> None:
    """Check a file that is about to be read against SHA256SUMS; files that it does not name are not shipped ones.

    Raises:
        UserError: it was shipped and is no longer the same.
    """
    root = _root()
    place = path.resolve()
    if not place.is_relative_to(root):
        return
    expected = _recorded().get(place.relative_to(root).as_posix())
    if expected is not None and _digest(place) != expected:
        raise UserError(
            f"{path}: not the file that was shipped (its SHA-256 is not the one in data/{SUMS}); restore it, "
            "or record a change that is meant with `lumoe config write`"
        )


@lru_cache(maxsize=1)
def _root() -> Path:
    return data_path().resolve()


@lru_cache(maxsize=1)
def _recorded() -> dict[str, str]:
    path = data_path(SUMS)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        return {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: the sums of the shipped data cannot be read ({error}); restore the file") from None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

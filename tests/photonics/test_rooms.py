"""Which room may import which, and what a room must not load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lumoe.photonics

HOME = Path(lumoe.photonics.__file__).parent
BASE = {"devices", "cook_toom", "network"}
PHYSICS = {*BASE, "physics"}
# Room or module -> what it may import of the package, besides itself.
MAY_IMPORT = {
    "devices": set(),
    "cook_toom": set(),
    "network": {"devices", "cook_toom"},
    "physics": BASE,
    "core": PHYSICS,
    "accelerators": PHYSICS,
    "simulation": {*PHYSICS, "accelerators"},
    "studies": {*PHYSICS, "accelerators"},
    "accuracy": {*PHYSICS, "core"},
}


def imported(path: Path) -> Iterator[str]:
    """Yield the rooms that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.split(".")[2] for name in names if name.startswith("lumoe.photonics."))


def test_every_room_has_its_place() -> None:
    rooms = {path.stem for path in HOME.iterdir() if path.name not in ("__init__.py", "__pycache__")}
    assert rooms == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_one_way(room: str) -> None:
    files = [*(HOME / room).glob("*.py")] or [HOME / f"{room}.py"]
    found = {(path.name, name) for path in files for name in imported(path)}
    assert {(file, name) for file, name in found if name not in MAY_IMPORT[room] | {room}} == set()


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (sorted(f"accelerators.{path.stem}" for path in (HOME / "accelerators").glob("*.py")), "torch simpy"),
        (["network.load", "network.layers", "network.shapes", "devices", "cook_toom"], "torch simpy scipy"),
        (["physics.limits", "physics.link", "physics.detector"], "torch scipy.optimize"),
        (["studies.estimate", "studies.explore"], "torch simpy"),
        (sorted(f"studies.{path.stem}" for path in (HOME / "studies").glob("*.py")), "simpy"),
        (["simulation.jobs", "simulation.comparison"], "torch"),
    ],
    ids=["accelerators", "network", "formulas", "sweeps", "studies", "simulation"],
)
def test_a_room_does_not_load_what_it_does_not_need(modules: list[str], heavy: str) -> None:
    imports = ", ".join(f"lumoe.photonics.{name}" for name in modules).replace(".__init__", "")
    code = f"import sys, {imports}; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_function_has_more_than_seven_parameters() -> None:
    found = set()
    for path in HOME.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                listed = node.args
                names = [*listed.posonlyargs, *listed.args, *listed.kwonlyargs, listed.vararg, listed.kwarg]
                if len([name for name in names if name and name.arg not in ("self", "cls")]) > 7:
                    found.add(f"{path.relative_to(HOME)}: {node.name}")
    assert found == set()

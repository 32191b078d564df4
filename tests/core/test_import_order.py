"""The order of the rooms: imports go one way, and what only plans or counts loads no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
BASE = "errors files resources strict_yaml sealed_tensors named progress memory_group machine anonymous_memory compiled"
# Each room may import those named for it, and itself.
MOE = {
    "planning": "", "kernels": "", "architectures": "planning", "checkpoint": "architectures kernels planning",
    "corpora": "architectures kernels checkpoint planning", "model": "architectures kernels checkpoint planning",
    "training": "architectures kernels checkpoint corpora planning",
    "quantization": "architectures kernels checkpoint corpora model planning",
}  # fmt: skip
MOE["offload"] = f"{MOE['quantization']} quantization"
MOE["engine"] = f"{MOE['offload']} offload"
MOE |= dict.fromkeys(("evaluation", "measurement", "serve"), f"{MOE['engine']} engine")
PHOTONICS = {"devices": "", "cook_toom": "", "network": "", "physics": "devices cook_toom network"}
PHOTONICS |= dict.fromkeys(("core", "accelerators"), f"{PHOTONICS['physics']} physics")
PHOTONICS |= dict.fromkeys(("simulation", "studies"), f"{PHOTONICS['accelerators']} accelerators")
PHOTONICS["accuracy"] = f"{PHOTONICS['core']} core"


def allowed(room: str) -> set[str]:
    """Return the prefixes of modules below `lumoe` that a module of `room` may import."""
    top, _, inner = room.partition(".")
    base = {"", *BASE.split()}
    if top in ("moe", "photonics"):
        rooms = (MOE if top == "moe" else PHOTONICS)[inner].split()
        return base | {room, top, *(f"{top}.{name}" for name in rooms)}
    return {"plots": base | {"plots"}, "pipeline": base | {"pipeline", "moe.planning", "moe.architectures"}}.get(
        top, base
    )


def room_of(module: str) -> str:
    """`moe.engine.open` is in `moe.engine`; a module of the base is its own room, `cli` is one."""
    parts = module.split(".")
    return ".".join(parts[: 2 if parts[0] in ("moe", "photonics") else 1])


@pytest.mark.parametrize("path", sorted((SRC / "lumoe").rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_imports_go_one_way(path: Path) -> None:
    module = ".".join(path.relative_to(SRC / "lumoe").with_suffix("").parts).removesuffix("__init__").strip(".")
    if module.startswith("cli"):
        return
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    whole = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    whole += [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names
              if (SRC / n.module.replace(".", "/") / f"{a.name}.py").is_file()]  # fmt: skip
    whole += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    used = {name.removeprefix("lumoe").removeprefix(".") for name in whole if name.split(".")[0] == "lumoe"}
    assert sorted(name for name in used if room_of(name) not in allowed(room_of(module))) == []


def modules(room: str) -> list[str]:
    return sorted(f"{room}.{path.stem}" for path in (SRC / "lumoe" / room.replace(".", "/")).glob("[!_]*.py"))


@pytest.mark.parametrize(
    ("loaded", "heavy"),
    [
        (modules("moe.planning"), "torch"),
        (modules("moe.architectures"), "torch"),
        (["moe.checkpoint.supported", "cli.models"], "torch pandas"),
        (modules("photonics.accelerators"), "torch simpy"),
        (["photonics.network.load", "photonics.network.shapes", "photonics.cook_toom"], "torch simpy scipy"),
        (["photonics.physics.limits", "photonics.physics.link", "photonics.physics.detector"], "torch scipy.optimize"),
        (["photonics.studies.estimate", "photonics.studies.explore"], "torch simpy"),
        (modules("photonics.studies"), "simpy"),
        (["photonics.simulation.jobs", "photonics.simulation.comparison"], "torch"),
    ],
    ids=[
        "planning",
        "architectures",
        "models",
        "accelerators",
        "network",
        "formulas",
        "sweeps",
        "studies",
        "simulation",
    ],
)
def test_a_room_does_not_load_what_it_does_not_need(loaded: list[str], heavy: str) -> None:
    imports = ", ".join(f"lumoe.{name}" for name in loaded)
    code = f"import sys, {imports}; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_room_has_its_place() -> None:
    for top, rooms in (("moe", MOE), ("photonics", PHOTONICS)):
        found = {path.stem for path in (SRC / "lumoe" / top).iterdir() if not path.name.startswith("__")}
        assert found == set(rooms)

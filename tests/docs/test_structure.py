"""docs/structure.md names every room, and every function that it names is where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src/lumoe"
TEXT = (ROOT / "docs/structure.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py):([\w.]+)`", TEXT)))


def test_every_room_is_named() -> None:
    rooms = {".".join(path.parent.relative_to(SRC).parts) for path in SRC.rglob("__init__.py")} - {""}
    assert sorted(room for room in rooms if f"`{room}`" not in TEXT and f"`lumoe.{room}`" not in TEXT) == []


def test_three_walks_of_eight_steps() -> None:
    walks = re.split(r"^## ", TEXT, flags=re.MULTILINE)[2:]
    assert [walk.splitlines()[0] for walk in walks] == ["One prompt", "One change of budget", "One network"]
    assert [len(re.findall(r"^\d\. ", walk, flags=re.MULTILINE)) for walk in walks] == [8, 8, 8]


@pytest.mark.parametrize(("file", "name"), NAMED, ids=[f"{file}:{name}" for file, name in NAMED])
def test_what_it_names_is_there(file: str, name: str) -> None:
    body: list[ast.stmt] = ast.parse((SRC / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        assert found, f"{file} has no {name}"
        body = found[0].body

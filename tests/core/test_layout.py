"""What is written in two places agrees: packages, pins, environments, sources that rules name."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[2]


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def wanted(name: str) -> list[Requirement]:
    lines = (ROOT / "envs" / name).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def test_every_folder_of_modules_is_a_package() -> None:
    # Packages are found by their `__init__.py`: a folder without one would be missing from the wheel.
    folders = {path.parent for path in (ROOT / "src/lumoe").rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []


def test_every_package_says_what_its_room_is_for() -> None:
    for path in (ROOT / "src/lumoe").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_no_function_but_a_command_has_more_than_seven_parameters() -> None:
    # More of them are a noun that has no name yet. A command's parameters are its options.
    found = []
    for path in (ROOT / "src/lumoe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                given = node.args
                names = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
                count = len([name for name in names if name and name.arg not in ("self", "cls")])
                command = any(re.match(r"app\.(command|callback)", ast.unparse(by)) for by in node.decorator_list)
                found += [f"{path.name}: {node.name}"] if count > 7 and not command else []
    assert found == []


def test_every_shipped_number_is_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["lumoe.data"]
    for path in (ROOT / "data").rglob("*"):
        inside = path.relative_to(ROOT / "data")
        if path.suffix in {".yaml", ".csv"} and inside.parts[0] != "models":
            depth = len(inside.parts)
            assert any(inside.match(pattern) for pattern in patterns if pattern.count("/") == depth - 1), inside


@pytest.mark.parametrize("name", ["runtime.in", "dev.in"])
def test_the_lock_satisfies_what_is_asked_for(name: str) -> None:
    locked = pins()
    for requirement in wanted(name):
        key = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert key in locked, f"{requirement.name} is not in requirements.lock: run `make lock`"
        assert requirement.specifier.contains(locked[key], prereleases=True), f"{requirement}, locked {locked[key]}"


def test_every_python_of_the_series_can_install_the_lock() -> None:
    # Distributions carry older patch releases than the newest: Debian 12 has 3.11.2.
    needs = {name: metadata(name)["Requires-Python"] for name in pins()}
    assert {name: need for name, need in needs.items() if need and not SpecifierSet(need).contains("3.11.0")} == {}


def test_the_conda_mirror_holds_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "envs/lumoe.yaml").read_text(encoding="utf-8"))
    mirrored = environment["dependencies"][-1]["pip"]
    assert dict(pin.split("==") for pin in mirrored) == pins()


def test_no_file_names_a_package_registry() -> None:
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(rb"(pypi|pythonhosted|npmjs|crates)\.(org|io|com)|download\.pytorch")
    for name in listing.stdout.decode().split("\0"):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".png", ".safetensors"} and path != Path(__file__):
            assert not hosts.search(path.read_bytes()), name

"""English prose that every installation has: docstrings of installed packages, read with `ast`, never imported."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import NamedTuple

from lumoe.errors import UserError

_DOCTEST = re.compile(r"^[ \t]*>>> .*(?:\n(?![ \t]*$).*)*\n?", re.MULTILINE)
_BLANK_LINES = re.compile(r"\n{3,}")
_SKIPPED_FOLDERS = {"test", "tests", "testing"}


class Document(NamedTuple):
    """One text and where it came from (``package/module.py:Class.method``)."""

    text: str
    origin: str


def package_folder(package: str) -> Path:
    """Return the folder of an installed top-level package without importing it.

    Raises:
        UserError: no such package, or a package without a folder of sources.
    """
    specification = PathFinder.find_spec(package) if package.isidentifier() else None
    if specification is None:
        raise UserError(
            f"corpus source 'package:{package}': no such package is installed; pip install it or name another"
        )
    if not specification.submodule_search_locations:
        raise UserError(f"corpus source 'package:{package}': a single module; name a package with a folder of sources")
    return Path(next(iter(specification.submodule_search_locations)))


def package_version(package: str) -> str:
    """Return the version of the distribution that provides `package`, or ``"unknown"``."""
    try:
        return version(packages_distributions().get(package, [package])[0])
    except PackageNotFoundError:
        return "unknown"


def clean(docstring: str) -> str:
    """Return a dedented docstring as prose: no doctest blocks, no trailing blanks, at most one blank line in a row."""
    text = unicodedata.normalize("NFC", docstring).replace("\t", "    ")
    text = _DOCTEST.sub("", text)
    text = "\n".join(line.rstrip() for line in text.splitlines())
    return _BLANK_LINES.sub("\n\n", text).strip()


def package_documents(package: str, minimum_characters: int) -> Iterator[Document]:
    """Yield the cleaned docstrings of a package that have at least `minimum_characters`, in a fixed order.

    Test folders are left out; a file that is not Python of this version is passed over.

    Raises:
        UserError: no such package.
    """
    folder = package_folder(package)
    files = [file.relative_to(folder) for file in folder.rglob("*.py")]
    for file in sorted(files, key=lambda file: file.as_posix()):
        if _SKIPPED_FOLDERS.isdisjoint(file.parts):
            yield from _file_documents(folder / file, f"{package}/{file.as_posix()}", minimum_characters)


def _file_documents(path: Path, origin: str, minimum_characters: int) -> Iterator[Document]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for name, node in _documented(tree, ()):
        text = clean(ast.get_docstring(node) or "")
        if len(text) >= minimum_characters:
            yield Document(text, f"{origin}:{'.'.join(name)}" if name else origin)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.AST, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], _Documented]]:
    if isinstance(node, ast.Module):
        yield name, node
    elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        name = (*name, node.name)
        yield name, node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):  # no definition lies inside an expression, and most nodes are expressions
            yield from _documented(child, name)

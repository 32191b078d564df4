"""Every shell block of the README and the documentation is run, or, where that takes long, checked word by word.

A comment before a block says which: ``<!-- run -->`` runs it in a copy of the checkout and wants exit code 0. Any
other block is checked: the commands and options of `lumoe` exist, `snakemake` plans the targets, `make` knows the
targets, every other program is one that a reader can have.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from lumoe.cli import app

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"(?:<!-- (?P<mark>[a-z]+)[^\n]*-->\n+)?^```(?:sh|bash|console)\n(?P<text>.*?)^```", re.M | re.S)
# Programs of the reader's system; they change it or wait, so they are not run here.
OTHERS = {
    "apt-get", "cat", "cd", "curl", "docker", "git", "head", "ls", "pip", "pytest", "python", "python3", "python3.11",
    "source", "export", "bash",
    "tests/cluster/one_machine_slurm.sh", "kill", "echo", "less", "mkdir", "cp", "diff", "open",
    "hf", "huggingface-cli", "nvidia-smi", "tar", "wget", ".venv/bin/snakemake", "mkdocs", "ruff", "mypy", "time",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """One fenced shell block: where it stands, how it is tested, what it says."""

    where: str
    mark: str
    text: str


def blocks() -> list[Block]:
    found = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text[: match.start("text")].count("\n") + 1
            where = f"{path.relative_to(ROOT)}:{line}"
            found.append(Block(where, match["mark"] or "check", match["text"].replace("$ ", "")))
    return found


def commands(text: str) -> list[list[str]]:
    """Split a block into simple commands; here-documents and comments are left out."""
    text = re.sub(r"<<\s*'?(\w+)'?[^\n]*\n.*?^\1$", "", text, flags=re.M | re.S).replace("\\\n", " ")
    found = []
    for line in text.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>()")
        lexer.commenters = "#"
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;"):
                while words and re.fullmatch(r"\w+=.*", words[0]):
                    words.pop(0)
                if words:
                    found.append(words)
                words = []
            elif set(word) <= set("<>"):
                words.append("\0")
            elif words and words[-1] == "\0":
                words.pop()
            else:
                words.append(word)
    return found


@cache
def command_line() -> Any:
    from importlib import import_module

    from lumoe.cli import GROUPS

    there = {group.name for group in app.registered_groups}
    for name in GROUPS:
        if name in there:
            continue
        app.add_typer(import_module(f"lumoe.cli.{name}").app, name=name)
    return typer.main.get_command(app)


def check_lumoe(words: list[str]) -> None:
    """Walk to the command that `words` name and hold its options against what it takes."""
    command, rest = command_line(), words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command, rest = command.commands[rest[0]], rest[1:]
    open_group = getattr(command, "commands", None) and not getattr(command, "invoke_without_command", False)
    if open_group:
        assert rest, f"`{shlex.join(words)}` names no command"
        assert rest[0].startswith("-"), f"lumoe has no command `{shlex.join(words[:-1])} {rest[0]}`"
    known = {"--help"} | {word for option in command.params for word in [*option.opts, *option.secondary_opts]}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in known, f"`{shlex.join(words)}`: no option {word}"
    if not open_group and "--help" not in rest:
        given = {word.partition("=")[0] for word in rest}
        missing = [
            option.opts[0]
            for option in command.params
            if option.required and option.param_type_name == "option" and not given & set(option.opts)
        ]
        assert not missing, f"`{shlex.join(words)}` lacks {missing}"


def check_snakemake(words: list[str], checkout: Path) -> None:
    """Let snakemake plan the command's targets; options that need more than a plan are left out."""
    if "--unlock" in words:
        return
    rest, dropping = [], False
    for word in words[1:]:
        if word.startswith("-"):
            dropping = word in {"--report", "--sdm", "--executor", "--workflow-profile"}
        if not dropping:
            rest.append(word)
    if "--configfile" in rest:
        # A file of the reader's own: the settings are checked by `lumoe config check`, here the defaults stand in.
        at = rest.index("--configfile")
        if not (checkout / rest[at + 1]).is_file():
            del rest[at : at + 2]
    rest = [word for word in rest if word != "--dry-run"]
    for option in ("--cores", "--quiet"):
        if option in rest:
            del rest[rest.index(option) : rest.index(option) + 2]
    failure = plan_failure(tuple(rest), checkout)
    assert not failure, f"`{shlex.join(words)}`: {failure}"


@cache
def plan_failure(arguments: tuple[str, ...], checkout: Path) -> str:
    """Return what snakemake says where it cannot plan `arguments`; many blocks come down to the same plan."""
    run = [sys.executable, "-m", "snakemake", *arguments, "--cores", "2", "--dry-run", "--quiet", "all"]
    done = subprocess.run(run, cwd=checkout, capture_output=True, text=True, check=False, timeout=300)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-2000:]


def check_make(words: list[str]) -> None:
    done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    for name in ("workflow", "config", "data", "src", "profiles", "envs", "figures"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "requirements.lock"):
        shutil.copy(ROOT / name, root)
    return root


def cases(mark: str) -> list[Any]:
    return [pytest.param(block, id=block.where) for block in blocks() if (block.mark == "run") == (mark == "run")]


@pytest.mark.parametrize("block", cases("run"))
def test_the_block_runs(block: Block, checkout: Path) -> None:
    here = Path(sys.executable).parent
    where = {**os.environ, "PATH": f"{here}:{os.environ['PATH']}", "COLUMNS": "150", "OMP_NUM_THREADS": "1"}
    run = ["bash", "-euo", "pipefail", "-c", block.text]
    done = subprocess.run(run, cwd=checkout, env=where, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{block.where}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.parametrize("block", cases("check"))
def test_the_block_is_right_word_by_word(block: Block, checkout: Path) -> None:
    for words in commands(block.text):
        program = words[0]
        if program == "lumoe":
            check_lumoe(words)
        elif program == "snakemake":
            check_snakemake(words, checkout)
        elif program == "make":
            check_make(words)
        else:
            assert program in OTHERS, f"{block.where}: `{program}` is not known here"


@pytest.mark.parametrize(
    "wrong", ["lumoe moe pln --model x", "lumoe moe plan --modle x", "lumoe moe plan --model x", "lumoe nothing"]
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    with pytest.raises(AssertionError):
        check_lumoe(shlex.split(wrong))


def leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", {})
    for word, one in below.items():
        yield from leaves(one, f"{name} {word}")
    if not below:
        yield name, command


@pytest.mark.parametrize(
    ("name", "command"), [pytest.param(*leaf, id=leaf[0]) for leaf in leaves(command_line(), "lumoe")]
)
def test_every_command_teaches_with_an_example_that_is_right(name: str, command: Any) -> None:
    examples = re.findall(r"Example: `([^`]+)`", command.help or "")
    assert examples, f"`{name} --help` has no example"
    for example in examples:
        assert example.startswith(name)
        check_lumoe(shlex.split(example))

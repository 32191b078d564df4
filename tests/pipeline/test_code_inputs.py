"""The files that a command can run, read off its sources: small packages made for one rule each, then this one."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lumoe
from lumoe.errors import UserError
from lumoe.pipeline.code_inputs import Sources, code, imported_by_name

PACKAGE = Path(lumoe.__file__).parent
ROOT = "import typer\nfrom importlib import import_module\nfrom toy.base import boot\napp = typer.Typer()\n"
LOAD = "def load(names):\n for name in names:\n  group = import_module(f'toy.cli.{name}').app\n"
GROUPS = f"{ROOT}{LOAD}  app.add_typer(group, name=name)\n"
GROUP = "import typer\napp = typer.Typer()\n"
COMMAND = f"{GROUP}@app.command()\ndef "
ALWAYS = {"__init__.py", "base.py"}


def closure(folder: Path, files: dict[str, str], command: str) -> set[str]:
    """Return the files, relative to the package, that `command` of a package of `files` can run."""
    package = folder / "src/toy"
    for name, text in {"__init__.py": "", "base.py": "", "cli/__init__.py": GROUPS, **files}.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text, encoding="utf-8")
    found = Sources(package).files(command)
    assert found == sorted(found)
    assert all((folder / name).is_file() for name in found)
    return {name.removeprefix("src/toy/") for name in found} - ALWAYS


def test_a_command_s_own_imports_count_and_not_its_sibling_s(tmp_path: Path) -> None:
    group = f"{COMMAND}one(x):\n import toy.a\n@app.command('other')\ndef two():\n import toy.b\n"
    files = {"cli/g.py": group, "a.py": "", "b.py": ""}
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "a.py"}
    assert closure(tmp_path, files, "g other") == {"cli/g.py", "b.py"}


def test_lazy_imports_of_libraries_count_and_those_for_type_checkers_do_not(tmp_path: Path) -> None:
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n import toy.c\nelse:\n import toy.e\n"
    lazy += "class A:\n def f(self):\n  with self:\n   from toy.d import x\n"
    files = {"cli/g.py": f"{COMMAND}one():\n import toy.a\n", "a.py": lazy}
    files |= dict.fromkeys(("c.py", "d.py", "e.py"), "")
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "a.py", "d.py", "e.py"}


@pytest.mark.parametrize(
    "statement",
    [
        "import toy.p.q.m",
        "from toy.p.q import m",
        "from toy.p.q.m import thing",
        "from ...p.q import m",
        "from ...p.q.m import thing as other",
        "from importlib import import_module; import_module('toy.p.q.m')",
    ],
)
def test_every_way_to_import_a_module_brings_its_packages(tmp_path: Path, statement: str) -> None:
    files = {"cli/g.py": f"{COMMAND}one():\n from toy.r.s import a\n", "r/s/a.py": f"{statement}\n"}
    files |= dict.fromkeys(("r/__init__.py", "r/s/__init__.py", "p/__init__.py", "p/q/m.py", "p/q/other.py"), "")
    files["p/q/__init__.py"] = "from toy import b\n"
    files["b.py"] = ""
    packages = {"r/__init__.py", "r/s/__init__.py", "p/__init__.py", "p/q/__init__.py"}
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "r/s/a.py", "p/q/m.py", "b.py", *packages}


def test_a_name_that_the_run_fills_in_stands_for_all_that_fit(tmp_path: Path) -> None:
    files = {"cli/g.py": f"{COMMAND}one():\n import toy.a\n"}
    files["a.py"] = "from importlib import import_module\ndef f(x):\n return import_module(f'toy.kind_{x}')\n"
    files |= dict.fromkeys(("kind_b.py", "kind_c.py", "other.py"), "")
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "a.py", "kind_b.py", "kind_c.py"}


def test_helpers_of_the_same_module_are_followed_and_names_of_variables_are_not(tmp_path: Path) -> None:
    group = f"{GROUP}from toy.cli.options import Size, check\nDEFAULT = (lambda: 1)()\n"
    group += "def _help(x):\n from toy import b\n return _more(x)\ndef _more(x):\n from toy import c\n"
    group += "@app.command()\ndef one(two: Size, x=DEFAULT):\n from toy.a import three\n three(two)\n _help(x)\n"
    group += "@app.command()\ndef two():\n from toy import d\n@app.command()\ndef three():\n from toy import d\n"
    files = {"cli/g.py": group, "cli/options.py": "Size = int\ndef check():\n from toy import e\n"}
    files |= dict.fromkeys(("a.py", "b.py", "c.py", "d.py", "e.py"), "")
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "cli/options.py", "a.py", "b.py", "c.py"}


def test_a_package_of_commands_does_not_bring_the_siblings_that_it_registers(tmp_path: Path) -> None:
    files = {
        "cli/g/__init__.py": f"from toy.cli.g import one, two\n{GROUP}"
        "for module in (one, two):\n app.registered_commands += module.app.registered_commands\n",
        "cli/g/one.py": f"from toy.cli.options import Size\n{COMMAND}first(x: Size):\n import toy.a\n",
        "cli/g/two.py": f"from toy.cli.g.one import Size\n{COMMAND}second(x: Size):\n import toy.b\n",
        "cli/options.py": "Size = int\n",
    } | dict.fromkeys(("a.py", "b.py"), "")
    assert closure(tmp_path, files, "g first") == {"cli/g/one.py", "cli/options.py", "a.py"}
    # What `second` takes from a sibling brings that file, but not what the sibling's command imports.
    assert closure(tmp_path, files, "g second") == {"cli/g/two.py", "cli/g/one.py", "cli/options.py", "b.py"}


def test_groups_within_groups_and_groups_that_are_one_command(tmp_path: Path) -> None:
    alone = f"{GROUP}@app.callback(invoke_without_command=True)\ndef run():\n import toy.a\n"
    files = {
        "cli/g.py": f"from importlib import import_module\nfrom toy.cli import solo\n{GROUP}"
        "for part in ('x',):\n app.add_typer(import_module(f'toy.cli.g_{part}').app, name=part)\n"
        "app.add_typer(solo.app, name='by-itself')\n",
        "cli/g_x.py": f"{GROUP}@app.command(name='in')\ndef inner():\n import toy.b\n",
        "cli/solo.py": alone,
        "cli/__init__.py": f"{GROUPS}from toy.cli.d import diagnose\napp.command('doctor')(diagnose)\n",
        "cli/d.py": "def diagnose():\n import toy.c\n",
    } | dict.fromkeys(("a.py", "b.py", "c.py"), "")
    assert closure(tmp_path, files, "g x in") == {"cli/g_x.py", "b.py"}
    assert closure(tmp_path, files, "g by-itself") == {"cli/solo.py", "a.py"}
    assert closure(tmp_path, files, "doctor") == {"cli/d.py", "c.py"}


def test_other_files_count_where_a_module_names_them_with_their_folders_and_what_they_include(tmp_path: Path) -> None:
    files = {
        "cli/g.py": f"{COMMAND}one():\n import toy.k.a\n@app.command()\ndef two():\n import toy.k.b\n",
        "k/a.py": "LIBRARY = package_path('k', 'csrc', 'x.cpp')\n",
        "k/b.py": "STYLE = 'plain.style'\nPAGE = 'x.cpp'\n",
        "k/csrc/x.cpp": '#include <vector>\n#include "y.h"\n',
        "k/csrc/y.h": '#pragma once\n  #  include "z.h"\n',
        "k/csrc/z.h": '#include "y.h"\n',
        "k/csrc/unused.h": "",
        "k/plain.style": "",
    }
    compiled = {"k/csrc/x.cpp", "k/csrc/y.h", "k/csrc/z.h"}
    assert closure(tmp_path, files, "g one") == {"cli/g.py", "k/a.py", *compiled}
    assert closure(tmp_path, files, "g two") == {"cli/g.py", "k/b.py", "k/plain.style"}


def test_an_unknown_command_is_one_sentence_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match=r"^`lumoe moe` has no command 'thruput'; did you mean 'throughput'\?$"):
        code("moe thruput")
    with pytest.raises(UserError, match=r"^`lumoe` has no command 'plott claims'; did you mean 'plot'\?$"):
        code("plott claims")
    with pytest.raises(UserError, match=r"^`lumoe moe` is a group; its commands: adapt, anchors, "):
        code("moe")


def test_several_commands_give_the_union() -> None:
    assert code("claims judge", "plot claims") == sorted({*code("claims judge"), *code("plot claims")})


def test_no_library_imports_a_part_of_the_package_by_a_name_that_only_the_run_knows() -> None:
    """The closure follows names that are written down, in part at least; `named` imports the user's own modules."""
    unknown = set()
    for path in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Call)]
        names = [name for name in map(imported_by_name, calls) if name is not None]
        if not path.is_relative_to(PACKAGE / "cli") and not all(name.startswith("lumoe.") for name in names):
            unknown.add(path.stem)
    assert unknown == {"named"}


def test_it_imports_nothing_and_takes_well_below_a_second() -> None:
    program = (
        "import sys; from lumoe.pipeline.code_inputs import code; code('moe throughput', 'photonics accuracy');"
        "print(sorted({'torch', 'numpy', 'typer', 'lumoe.cli'} & {*sys.modules}))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
    began = time.process_time()
    Sources(PACKAGE).files("moe throughput")
    assert time.process_time() - began < 1

"""Change the arithmetic of one module at a time and see whether its tests notice.

    pip install cosmic-ray==8.7.0
    python benchmarks/mutation.py --folder build/mutation            # all modules, goes on where it stopped
    python benchmarks/mutation.py --folder build/mutation --survivors

Mutants are cosmic-ray's, as a library; each is run in a fork of a process that has imported everything but this
package, so that a mutant costs its tests and not their start. Mutants are taken in a random order: the share killed of
a part of them is an estimate for all. Those that change annotations only are left out. A change of the module's source
discards its rows; a change of its tests runs its survivors again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import random
import signal
import sys
import time
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from lumoe.files import read_csv, read_json, write_csv, write_json

ROOT = Path(__file__).parents[1]
TESTS = {
    "lumoe.moe.planning.plan": ["tests/moe/planning/test_plan.py"],
    "lumoe.moe.planning.placement": ["tests/moe/planning/test_plan.py"],
    "lumoe.moe.planning.cost": ["tests/moe/planning/test_cost.py"],
    "lumoe.moe.planning.frontier": ["tests/moe/planning/test_frontier.py"],
    "lumoe.photonics.physics.microring": ["tests/photonics/physics/test_microring.py"],
    "lumoe.photonics.physics.weightbank": ["tests/photonics/physics/test_weightbank.py"],
    "lumoe.photonics.accelerators.pcnna": ["tests/photonics/accelerators/test_pcnna.py"],
    "lumoe.photonics.accelerators.winograd": ["tests/photonics/accelerators/test_winograd.py"],
}
# Each operator becomes its opposite or its neighbour; every pair would count one gap of the tests ten times.
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{pair}" for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "FloorDiv_Mul", "Mod_FloorDiv", "Pow_Mul",
        "BitOr_BitAnd", "BitAnd_BitOr")),
    *(f"core/ReplaceComparisonOperator_{pair}" for pair in (
        "Eq_NotEq", "NotEq_Eq", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
        "Is_IsNot", "IsNot_Is")),
    "core/ReplaceUnaryOperator_Delete_USub", "core/ReplaceUnaryOperator_Delete_Not",
    "core/ReplaceUnaryOperator_Delete_Invert", "core/ReplaceTrueWithFalse", "core/ReplaceFalseWithTrue",
    "core/ReplaceAndWithOr", "core/ReplaceOrWithAnd", "core/AddNot", "core/NumberReplacer",
    "core/ZeroIterationForLoop", "core/ReplaceBreakWithContinue", "core/ReplaceContinueWithBreak",
)  # fmt: skip


def main() -> None:
    options = parse()
    end = time.monotonic() + options.seconds
    warm = False
    for module in options.modules:
        table = options.folder / f"{module}.csv"
        found = mutants(module, options.folder)
        done = known(table, module)
        todo = [mutant for mutant in found if mutant[:2] not in done][: max(0, options.sample - len(done))]
        # Tests written since may kill what survived those before them; what these killed stays killed.
        tests = fingerprint(*(Path(file).read_text(encoding="utf-8") for file in TESTS[module]))
        todo += [mutant for mutant in found if mutant[:2] in done and is_stale(done[mutant[:2]], tests)]
        if todo and not options.survivors and time.monotonic() < end:
            if not warm:
                preload()
                warm = True
            began = time.monotonic()
            if outcome(module, source(module), 300) != "survived":
                sys.exit(f"{module}: its tests fail without any change")
            limit = 20 + 10 * (time.monotonic() - began)
            for operator, occurrence, line, changed in todo:
                if time.monotonic() > end:
                    break
                done[operator, occurrence] = {
                    "operator": operator, "occurrence": occurrence, "line": line,
                    "outcome": outcome(module, changed, limit), "source": fingerprint(source(module)), "tests": tests,
                }  # fmt: skip
                write_csv(table, pd.DataFrame(list(done.values())))
        rows = list(done.values())
        killed = sum(row["outcome"] != "survived" for row in rows)
        share = f"{killed / len(rows):.1%}" if rows else "none"
        print(f"{module}: {len(rows)} of {len(found)} mutants run, {killed} killed ({share})", flush=True)
        if options.survivors:
            show_survivors(module, rows, found)


def known(table: Path, module: str) -> dict[tuple[str, int], dict[str, object]]:
    """Return the rows of earlier calls that were of this very source, by operator and occurrence."""
    if not table.is_file():
        return {}
    rows = read_csv(table)
    same = rows[rows["source"] == fingerprint(source(module))]
    return {(row["operator"], row["occurrence"]): row for row in same.to_dict("records")}


def is_stale(row: dict[str, object], tests: str) -> bool:
    return row["outcome"] == "survived" and row["tests"] != tests


def fingerprint(*texts: object) -> str:
    return hashlib.sha256(repr(texts).encode()).hexdigest()[:12]


def source(module: str) -> str:
    return (ROOT / "src" / Path(*module.split("."))).with_suffix(".py").read_text(encoding="utf-8")


def mutants(module: str, folder: Path) -> list[tuple[str, int, int, str]]:
    """Return (operator, occurrence, line, changed source) of every mutant, in a random order that stays the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    whole = source(module)
    kept = folder / f"{module}-{fingerprint(whole, OPERATORS)}.json"
    if kept.is_file():
        return [tuple(mutant) for mutant in read_json(kept)]
    found, seen = [], {meaning(whole)}
    for operator in OPERATORS:
        for occurrence in range(10_000):
            changed = mutate_code(whole, get_operator(operator)(), occurrence)
            if changed is None:
                break
            try:
                key = meaning(changed)
            except SyntaxError:  # a star between parameters is no product
                continue
            if key not in seen:
                seen.add(key)
                pairs = zip(whole.splitlines(), changed.splitlines(), strict=False)
                line = next((number for number, (old, new) in enumerate(pairs, 1) if old != new), 0)
                found.append((operator.removeprefix("core/"), occurrence, line, changed))
    random.Random(module).shuffle(found)
    write_json(kept, found)
    return found


def meaning(text: str) -> str:
    """Return the syntax tree without annotations, which nothing evaluates, and without docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
        if isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def preload() -> None:
    """Import what the tests import, except this package and the tests."""
    files = [file for tests in TESTS.values() for file in tests]
    pytest.main([*files, "-q", "--collect-only", "-p", "no:cacheprovider"])
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lumoe"]:
        del sys.modules[name]
    for name, module in list(sys.modules.items()):
        if str(ROOT / "tests") in str(getattr(module, "__file__", "")):
            del sys.modules[name]


class Changed(MetaPathFinder, Loader):
    """Gives one module another source."""

    def __init__(self, module: str, text: str) -> None:
        self.module, self.text = module, text

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> ModuleSpec | None:
        return spec_from_loader(name, self) if name == self.module else None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.text, f"<changed {self.module}>", "exec"), module.__dict__)  # noqa: S102 - its purpose


def outcome(module: str, text: str, limit_s: float) -> str:
    """Run the module's tests with `text` in its place, in a fork: killed, survived or timeout."""
    child = os.fork()
    if child == 0:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        code = 1
        try:
            sys.meta_path.insert(0, Changed(module, text))
            arguments = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly", "--hypothesis-seed=0"]
            code = int(pytest.main([*TESTS[module], *arguments]))
        finally:
            os._exit(code)
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "survived" if status == 0 else "killed"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def show_survivors(module: str, done: list[dict[str, object]], found: list[tuple[str, int, int, str]]) -> None:
    texts = {mutant[:2]: mutant[3] for mutant in found}
    for row in sorted(done, key=lambda row: int(str(row["line"]))):
        if row["outcome"] == "survived":
            line = int(str(row["line"]))
            changed = texts[str(row["operator"]), int(str(row["occurrence"]))].splitlines()[line - 1]
            print(f"  {line}: {source(module).splitlines()[line - 1].strip()}\n      {changed.strip()}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/mutation"))
    parser.add_argument("--modules", nargs="*", default=list(TESTS), choices=list(TESTS))
    parser.add_argument("--sample", type=int, default=10_000, help="mutants of a module, at most")
    parser.add_argument("--seconds", type=float, default=1e9, help="of this call, about")
    parser.add_argument("--survivors", action="store_true", help="list the survivors, run nothing")
    options = parser.parse_args()
    os.chdir(ROOT)
    return options


if __name__ == "__main__":
    main()

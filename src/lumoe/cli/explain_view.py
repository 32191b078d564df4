"""The chain behind a claim, drawn as a tree for people."""

from __future__ import annotations

from typing import Any

from rich.markup import escape
from rich.tree import Tree

from lumoe.pipeline.explain import Record

RULES = {"at-least": "at least", "at-most": "at most", "within": "within"}


def tree(record: Record) -> Tree:
    """Return the chain of `lumoe.pipeline.explain` as a tree: claim, quantities, tables, rules, inputs, sources."""
    root = Tree(f"[bold]{escape(record['claim'])}[/]: {escape(record['statement'])}")
    root.add(f"paper: {escape(record['paper'])}, {record['paper_url']}")
    shown: set[str] = set()
    for quantity in record["quantities"]:
        _quantity(root, quantity, shown)
    return root


def _quantity(root: Tree, quantity: Record, shown: set[str]) -> None:
    unit = f" \\[{escape(quantity['unit'])}]" if quantity["unit"] else ""
    branch = root.add(f"[bold]{escape(quantity['quantity'])}[/]{unit}")
    values = [f"paper {_number(quantity['paper_value'])}", f"here {_number(quantity['value'])}"]
    if quantity["low"] is not None:
        values.append(f"range {_number(quantity['low'])} … {_number(quantity['high'])}")
    branch.add(f"{', '.join(values)}; verdict: {quantity['verdict'] or 'not judged yet'}; basis: {quantity['basis']}")
    if quantity["judgement"]:
        judgement = quantity["judgement"]
        tolerance = f" ± {judgement['tolerance']:.0%}" if judgement["rule"] == "within" else ""
        branch.add(f"judged by: {RULES[judgement['rule']]} {judgement['threshold']:g}{tolerance}")
    for word in ("assumption", "needs"):
        if quantity[word]:
            branch.add(f"{word}: {escape(quantity[word])}")
    for table in quantity["tables"]:
        _table(branch, table, shown)


def _table(branch: Tree, table: Record, shown: set[str]) -> None:
    rows = ", ".join(f"{key} = {value}" for key, value in table["where"].items()) or "all rows"
    column = table["column"] + (f" / {table['per']}" if table["per"] else "")
    reduce = "" if table["reduce"] == "only" else f"{table['reduce']} of "
    leaf = branch.add(f"{table['role']}: {table['table']}: {escape(reduce + column)}, where {escape(rows)}")
    if table["rule"] is None:
        leaf.add("no rule of this configuration makes this table")
        return
    if table["rule"]["command"] in shown:
        leaf.add(f"rule [cyan]{table['rule']['rule']}[/], as above")
        return
    shown.add(table["rule"]["command"])
    rule = leaf.add(f"rule [cyan]{table['rule']['rule']}[/] ({table['rule']['at']})")
    rule.add(escape(table["rule"]["command"]))
    _listing(rule, "rests on rules", _counted(table["rests_on"]))
    inputs = rule.add("reads")
    for data in table["data"]:
        node = inputs.add(escape(data["file"]))
        for source in data["sources"]:
            node.add(f"source: {escape(source)}")
    _listing(rule, "code", table["code"])


def _counted(rules: list[Record]) -> list[str]:
    seen: dict[str, Any] = {}
    for rule in rules:
        name = f"{rule['rule']} ({rule['at']})"
        seen[name] = seen.get(name, 0) + 1
    return [name if count == 1 else f"{name} x {count}" for name, count in seen.items()]


def _listing(parent: Tree, title: str, items: list[str]) -> None:
    if items:
        parent.add(f"{title}: {escape(', '.join(items))}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"

"""From a claim to what it rests on: its quantities, their tables, the rules that make them, the files those read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.errors import UserError, nearest
from lumoe.files import read_csv, read_yaml
from lumoe.pipeline.claims import Claim, Claims, Value
from lumoe.pipeline.graph import Graph, Job

Record = dict[str, Any]
# The rule whose inputs are everything a claim can rest on.
JUDGE = "judge_claims"


@dataclass(frozen=True, eq=False)
class _Run:
    """The planned pipeline in a checkout: where its results lie, what fills in paths, and what was judged."""

    root: Path
    graph: Graph
    results: Path
    names: Mapping[str, str]
    judged: pd.DataFrame | None


def find_claim(claims: Claims, name: str) -> Claim:
    """Return the claim called `name`.

    Raises:
        UserError: there is none; the message names the nearest one.
    """
    known = {claim.claim: claim for claim in claims.claims}
    if name not in known:
        raise UserError(f"no claim is called '{name}'{nearest(name, known)}")
    return known[name]


def explain(claim: Claim, graph: Graph, root: Path) -> Record:
    """Return the chain of `claim` as plain data; files are relative to `root`, the checkout.

    The judging rule says which names fill in the tables' paths and where results lie; the judged values are there
    only when the pipeline has run.
    """
    judge = next(job for job in graph.jobs if job.rule == JUDGE)
    names = dict(re.findall(r"--name (\w+)=(\S+)", judge.command))
    run = _Run(root, graph, Path(graph.settings["results"]), names, _judged(root / judge.outputs[0]))
    return {
        "claim": claim.claim,
        "paper": claim.paper,
        "paper_url": "https://arxiv.org/abs/" + claim.paper.removeprefix("arXiv "),
        "statement": claim.statement,
        "quantities": [_quantity(claim, position, run) for position in range(len(claim.quantities))],
    }


def _judged(path: Path) -> pd.DataFrame | None:
    return read_csv(path, ["claim", "quantity", "value", "low", "high", "verdict"]) if path.is_file() else None


def _quantity(claim: Claim, position: int, run: _Run) -> Record:
    quantity = claim.quantities[position]
    record: Record = {
        "quantity": quantity.quantity.format_map(run.names),
        "unit": quantity.unit,
        "paper_value": _number(quantity.paper_number()),
        "judgement": quantity.judgement.model_dump() if quantity.judgement else None,
        "basis": quantity.basis,
        "assumption": quantity.assumption,
        "needs": quantity.needs,
        **_verdict(claim, position, run.judged),
        "tables": [],
    }
    roles = {"value": quantity.value, "low": quantity.low, "high": quantity.high}
    for role, value in roles.items():
        if value is not None:
            record["tables"].append({"role": role, **_table(value, run)})
    return record


def _verdict(claim: Claim, position: int, judged: pd.DataFrame | None) -> Record:
    rows = [] if judged is None else judged[judged["claim"] == claim.claim].to_dict("records")
    # A table judged from another claims file says nothing about this one.
    if len(rows) != len(claim.quantities):
        return {"value": None, "low": None, "high": None, "verdict": None}
    row = rows[position]
    return {**{key: _number(row[key]) for key in ("value", "low", "high")}, "verdict": row["verdict"]}


def _table(value: Value, run: _Run) -> Record:
    path = str(run.results / value.table.format_map(run.names))
    job = run.graph.maker(path)
    rows = {key: cell.format_map(run.names) if isinstance(cell, str) else cell for key, cell in value.where.items()}
    selection = {"column": value.column, "where": rows, "reduce": value.reduce, "per": value.per}
    if job is None:
        return {"table": path, **selection, "rule": None, "rests_on": [], "data": [], "code": []}
    leaves = run.graph.leaves(path)
    return {
        "table": path,
        **selection,
        "rule": _rule(job),
        "rests_on": [_rule(other) for other in run.graph.upstream(path)[1:]],
        "data": [{"file": leaf, "sources": sources(run.root / leaf)} for leaf in leaves if not leaf.startswith("src/")],
        "code": [leaf for leaf in leaves if leaf.startswith("src/")],
    }


def _rule(job: Job) -> Record:
    return {
        "rule": job.rule,
        "at": f"{job.snakefile}:{job.line}",
        "inputs": list(job.inputs),
        "outputs": list(job.outputs),
        "command": job.command,
    }


def sources(path: Path) -> list[str]:
    """Return what a data file names as the sources of its numbers: its `source` keys or column, each once, in order."""
    if path.suffix in {".yaml", ".yml"}:
        found = list(_named(read_yaml(path)))
    elif path.suffix == ".csv":
        table = read_csv(path)
        found = [str(item) for item in table["source"].dropna()] if "source" in table else []
    else:
        found = []
    return list(dict.fromkeys(" ".join(item.split()) for item in found))


def _named(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"source", "sources"}:
                yield from (str(item) for item in (value if isinstance(value, list) else [value]))
            else:
                yield from _named(value)
    elif isinstance(node, list):
        for item in node:
            yield from _named(item)


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)

"""Judging: verdicts follow from values, never from the paper's number; absent tables stop the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lumoe.errors import UserError
from lumoe.pipeline.claims import COLUMNS, Claims, Judgement, judge, overall, read_claims, view_of
from lumoe.resources import data_path

ABSTRACTS = {
    "moe-throughput-range", "moe-ppl-wikitext2", "moe-ppl-ptb", "moe-ppl-c4", "moe-pareto", "pcnna-full-system",
    "pcnna-optical-core", "winograd-speed", "winograd-power", "winograd-efficiency",
}  # fmt: skip


def one_claim(**quantity: Any) -> Claims:
    base = {"quantity": "speed-up", "unit": "ratio", "paper_value": 100.0, "basis": "modelled", "target": "t.csv"}
    return Claims.model_validate(
        {"claims": [{"claim": "c", "paper": "p", "statement": "s", "quantities": [{**base, **quantity}]}]}
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    table = pd.DataFrame({"layer": ["a", "b", "c"], "s": [50.0, 200.0, 400.0], "base": [10.0, 10.0, 100.0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    return tmp_path


AT_LEAST = {"rule": "at-least", "threshold": 100}


@pytest.mark.parametrize(
    ("quantity", "value", "verdict"),
    [
        ({"value": {"table": "t.csv", "column": "s", "reduce": "max"}, "judgement": AT_LEAST}, 400, "reproduced"),
        ({"value": {"table": "t.csv", "column": "s", "reduce": "min"}, "judgement": AT_LEAST}, 50, "not-reproduced"),
        (
            {
                "value": {"table": "t.csv", "column": "s", "where": {"layer": "b"}},
                "judgement": AT_LEAST,
                "assumption": "x",
            },
            200,
            "reproduced-under-assumptions",
        ),
        (
            {
                "value": {"table": "t.csv", "column": "s", "reduce": "max"},
                "low": {"table": "t.csv", "column": "s", "reduce": "min"},
                "judgement": AT_LEAST,
            },
            400,
            "partly",
        ),
        (
            {
                "value": {"table": "t.csv", "column": "s", "per": "base", "reduce": "max", "minus_one": True},
                "judgement": {"rule": "within", "threshold": 20, "tolerance": 0.05},
            },
            19,
            "reproduced",
        ),
        ({"value": {"table": "t.csv", "column": "layer", "reduce": "count"}, "stand_in": True}, 3, "not-run"),
    ],
)
def test_value_and_verdict(results: Path, quantity: dict[str, Any], value: float, verdict: str) -> None:
    row = judge(one_claim(**quantity), results, {}).iloc[0]
    assert row["value"] == pytest.approx(value)
    assert row["verdict"] == verdict


def test_what_needs_absent_hardware_is_not_run_and_says_so(results: Path) -> None:
    row = judge(one_claim(needs="an A100", basis=None), results, {}).iloc[0]
    assert (row["verdict"], row["assumption"]) == ("not-run", "needs an A100")
    assert pd.isna(row["value"]), "the paper's number must never stand in for a value"


def test_an_optional_value_is_judged_where_its_table_has_a_row_and_not_run_where_not(results: Path) -> None:
    value = {"table": "t.csv", "column": "s", "where": {"layer": "c"}}
    optional = {"optional": True, "needs": "a GPU", "value": value, "judgement": AT_LEAST, "basis": "measured"}
    row = judge(one_claim(**optional), results, {}).iloc[0]
    assert (row["value"], row["verdict"], row["basis"], row["assumption"]) == (400, "reproduced", "measured", "")
    absent = {**optional, "value": {**value, "where": {"layer": "z"}}, "assumption": "x"}
    row = judge(one_claim(**absent), results, {}).iloc[0]
    assert (row["verdict"], row["basis"], row["assumption"]) == ("not-run", "", "needs a GPU")
    assert pd.isna(row["value"])


def test_paper_increase_is_computed_from_its_two_numbers(results: Path) -> None:
    row = judge(one_claim(paper_value=None, paper_from=2.62, paper_to=2.80, needs="weights"), results, {}).iloc[0]
    assert row["paper_value"] == pytest.approx(0.0687, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"table": "absent.csv", "column": "s"}, "no such file"),
        ({"table": "t.csv", "column": "q"}, "'q' is missing"),
        ({"table": "t.csv", "column": "s"}, "3 rows match"),
        ({"table": "t.csv", "column": "s", "where": {"layer": "z"}, "reduce": "max"}, "0 rows match"),
    ],
)
def test_a_table_that_does_not_hold_the_value_stops(results: Path, value: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        judge(one_claim(value=value, judgement=AT_LEAST), results, {})


@pytest.mark.parametrize(
    ("reduce", "value"), [("max", 400.0), ("min", 50.0), ("sum", None), ("mean", None), ("only", None)]
)
def test_a_missing_number_is_never_an_extreme_nor_a_result(results: Path, reduce: str, value: float | None) -> None:
    table = pd.read_csv(results / "t.csv")
    table.loc[1, "s"] = float("nan")
    table.to_csv(results / "t.csv", index=False)
    where = {"layer": "b"} if reduce == "only" else {}
    claims = one_claim(value={"table": "t.csv", "column": "s", "reduce": reduce, "where": where}, judgement=AT_LEAST)
    if value is None:
        with pytest.raises(UserError, match="is nan; rebuild"):
            judge(claims, results, {})
    else:
        assert judge(claims, results, {}).iloc[0]["value"] == value


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": {"table": "t", "column": "c"}}, "needs a judgement"),
        ({}, "must say what it needs"),
        ({"optional": True, "value": {"table": "t", "column": "c"}}, "must say what it needs where it is absent"),
        ({"optional": True, "needs": "x", "value": {"table": "t", "column": "c"}}, "needs a judgement"),
        ({"paper_from": 1.0, "needs": "x"}, "go together"),
        ({"verdict": "reproduced", "needs": "x"}, "Extra inputs"),
    ],
)
def test_an_ill_formed_record_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    record = {"quantity": "q", "unit": "", "basis": "modelled", "target": "t", **change}
    path = tmp_path / "claims.yaml"
    claims = {"claims": [{"claim": "c", "paper": "p", "statement": "s", "quantities": [record]}]}
    path.write_text(yaml.safe_dump(claims), encoding="utf-8")
    with pytest.raises(UserError, match=words) as caught:
        read_claims(path)
    assert "claims.yaml" in str(caught.value)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_at_least_and_at_most_are_complements_but_at_the_threshold(value: float, threshold: float) -> None:
    least = Judgement(rule="at-least", threshold=threshold).holds(value)
    most = Judgement(rule="at-most", threshold=threshold).holds(value)
    assert least or most
    assert (least and most) == (value == threshold)


def test_the_shipped_file_holds_every_claim_of_the_three_abstracts() -> None:
    claims = read_claims(data_path("claims.yaml"))
    assert {claim.claim for claim in claims.claims} == ABSTRACTS


def test_both_versions_of_the_perplexities_are_recorded() -> None:
    published = {
        "moe-ppl-wikitext2": [(2.62, 2.80), (3.81, 4.00)],
        "moe-ppl-ptb": [(6.48, 7.24), (13.59, 14.17)],
        "moe-ppl-c4": [(3.24, 3.53), (7.24, 7.40)],
    }
    claims = {claim.claim: claim for claim in read_claims(data_path("claims.yaml")).claims}
    for name, pairs in published.items():
        found = [(q.paper_from, q.paper_to) for q in claims[name].quantities if q.paper_from is not None]
        assert found == pairs


def test_overall_keeps_the_first_row_of_each_claim(results: Path) -> None:
    table = pd.concat([judge(one_claim(needs="x"), results, {})] * 2)
    assert len(overall(table)) == 1
    assert tuple(table.columns) == COLUMNS


def test_the_overview_is_what_people_read(results: Path) -> None:
    table = judge(one_claim(value={"table": "t.csv", "column": "s", "reduce": "max"}, judgement=AT_LEAST), results, {})
    (row,) = view_of(table).to_dict("records")
    assert row == {
        "claim": "c", "quantity": "speed-up [ratio]", "paper": "100", "here": "400", "range": "", "basis": "modelled",
        "verdict": "reproduced",
    }  # fmt: skip

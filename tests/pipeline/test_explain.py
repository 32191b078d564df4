"""The chain behind a claim, held against the workflow's own files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumoe.cli.claims import app
from lumoe.errors import UserError
from lumoe.pipeline.claims import read_claims
from lumoe.pipeline.explain import JUDGE, explain, find_claim, sources
from lumoe.pipeline.graph import Graph, find_root, plan
from lumoe.resources import data_path

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explain")
    for name in ("workflow", "config", "data", "src"):
        shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "Snakefile", root)
    return root


@pytest.fixture(scope="module")
def graph(checkout: Path) -> Graph:
    return plan(checkout, [JUDGE])


def test_every_table_of_every_claim_has_a_rule_and_the_rule_s_file_says_so(checkout: Path, graph: Graph) -> None:
    for claim in read_claims(data_path("claims.yaml")).claims:
        for quantity in explain(claim, graph, checkout)["quantities"]:
            for table in quantity["tables"]:
                assert table["rule"] is not None, f"{claim.claim}: no rule makes {table['table']}"
                file, line = table["rule"]["at"].split(":")
                text = (checkout / file).read_text().splitlines()[int(line) - 1]
                name = re.escape(table["rule"]["rule"])
                assert re.fullmatch(rf"rule {name}:|use rule \w+ as {name} with:", text.strip())
                assert table["table"] in table["rule"]["outputs"]
                assert table["data"] or table["code"], f"{table['table']} rests on nothing"


def test_the_optical_core_rests_on_eyeriss_and_names_the_source(checkout: Path, graph: Graph) -> None:
    claim = find_claim(read_claims(data_path("claims.yaml")), "pcnna-optical-core")
    record = explain(claim, graph, checkout)
    assert record["paper_url"] == "https://arxiv.org/abs/1807.08792"
    table = record["quantities"][0]["tables"][0]
    read = {item["file"]: item["sources"] for item in table["data"]}
    assert any("Chen et al." in source for source in read["data/eyeriss_layers.csv"])
    assert any(file.endswith("/pcnna.py") for file in table["code"])
    assert all(file.startswith("src/lumoe/") and (checkout / file).is_file() for file in table["code"])
    assert record["quantities"][0]["verdict"] is None, "nothing was judged in this checkout"


def test_a_measured_claim_reaches_through_the_rules_to_the_corpora(checkout: Path, graph: Graph) -> None:
    model = graph.settings["model"]["name"]
    rules = [job.rule for job in graph.upstream(f"results/moe/{model}/perplexity.csv")]
    assert rules[-1] != rules[0]
    assert "build_corpora" in rules
    assert len(set(map(id, graph.upstream(f"results/moe/{model}/perplexity.csv")))) == len(rules)


def test_a_measured_claim_rests_on_the_compiled_kernels_too(checkout: Path, graph: Graph) -> None:
    claim = find_claim(read_claims(data_path("claims.yaml")), "moe-ppl-ptb")
    tables = [table for quantity in explain(claim, graph, checkout)["quantities"] for table in quantity["tables"]]
    assert tables
    for table in tables:
        assert {"experts.cpp", "layout.h"} <= {Path(file).name for file in table["code"]}
        assert not {Path(item["file"]).name for item in table["data"]} & {"experts.cpp", "layout.h"}


def test_judged_values_are_shown_once_they_exist(checkout: Path, graph: Graph) -> None:
    claim = find_claim(read_claims(data_path("claims.yaml")), "pcnna-optical-core")
    rows = [
        f"pcnna-optical-core,{position},{position + 1}.5,,,not-reproduced" for position in range(len(claim.quantities))
    ]
    judged = checkout / "results/claims.csv"
    judged.parent.mkdir(exist_ok=True)
    judged.write_text("claim,quantity,value,low,high,verdict\n" + "\n".join(rows) + "\n")
    try:
        first = explain(claim, graph, checkout)["quantities"][0]
    finally:
        judged.unlink()
    assert (first["value"], first["low"], first["verdict"]) == (1.5, None, "not-reproduced")


def test_the_command_gives_a_tree_or_json(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout / "data")
    text = CliRunner().invoke(app, ["explain", "pcnna-optical-core"])
    assert text.exit_code == 0, text.output
    assert "model_pcnna" in text.output
    assert "Chen et al." in text.output
    record = json.loads(CliRunner().invoke(app, ["explain", "pcnna-optical-core", "--json"]).stdout)
    assert record["claim"] == "pcnna-optical-core"


def test_a_misspelt_claim_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pcnna-optical-core'"):
        find_claim(read_claims(data_path("claims.yaml")), "pcnna-optical")


def test_outside_the_checkout_it_says_where_to_go(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="go to the checkout"):
        find_root(tmp_path)


def test_a_pipeline_that_cannot_be_planned_is_one_sentence(checkout: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv"):
        plan(checkout, ["absent.csv"])


def test_sources_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    file = tmp_path / "numbers.yaml"
    file.write_text("a: {value: 1, source: X}\nb: [{source: Y}, {source: X}]\n")
    assert sources(file) == ["X", "Y"]
    assert sources(tmp_path / "model.safetensors") == []


def test_the_chain_is_an_option_too(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    as_option, as_command = (CliRunner().invoke(app, [word, "pcnna-optical-core"]) for word in ("--explain", "explain"))
    assert as_option.exit_code == as_command.exit_code == 0
    assert as_option.stdout == as_command.stdout
    assert "data/devices/pcnna.yaml" in as_option.stdout

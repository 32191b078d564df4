"""The command line: completion, rows for programs, and commands that start without what they do not need."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from lumoe.cli import GROUPS

BIN = Path(sys.executable).parent
TABLES = [
    ["photonics", "estimate", "--network", "alexnet"],
    ["photonics", "layers", "--network", "alexnet"],
    ["doctor"],
]


def lumoe(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-c", "from lumoe.cli import main; main()", *words]
    return subprocess.run(
        run, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("lumoe photonics expl", "explore"), ("lumoe moe pl", "plan"), ("lumoe prov", "provenance")],
)
def test_the_shell_completes_groups_and_commands(typed: str, expected: str) -> None:
    words = typed.split()
    asked = {"_LUMOE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    program = subprocess.run(
        [BIN / "lumoe"], env={**os.environ, **asked}, capture_output=True, text=True, check=False, timeout=60
    )
    assert program.stdout.split() == [expected], program.stderr


@pytest.mark.parametrize("words", TABLES, ids=lambda words: words[-1])
def test_rows_as_json_and_as_csv_are_the_same_rows(words: list[str]) -> None:
    as_json, as_csv = lumoe(*words, "--json"), lumoe(*words, "--csv")
    rows = pd.DataFrame(json.loads(as_json.stdout))
    read = pd.read_csv(io.StringIO(as_csv.stdout))
    assert len(read) > 1
    assert list(read.columns) == list(rows.columns)
    first = rows.columns[0]
    assert read[first].tolist() == rows[first].tolist()


def test_a_plan_as_csv_has_a_row_for_every_expert() -> None:
    words = ["moe", "plan", "--model", "mixtral-8x7b", "--hardware", "a100-80gb", "--budget", "40%"]
    words += ["--prefer", "throughput"]
    plan = json.loads(lumoe(*words, "--json").stdout)
    rows = pd.read_csv(io.StringIO(lumoe(*words, "--csv").stdout))
    assert rows.columns.tolist() == ["layer", "expert", "bits", "resident"]
    assert rows["bits"].to_numpy().reshape(32, 8).tolist() == plan["bits"]
    assert rows["resident"].to_numpy().reshape(32, 8).tolist() == plan["resident"]
    assert rows.loc[11, ["layer", "expert"]].tolist() == [1, 3]
    both = lumoe(*words, "--json", "--csv")
    assert (both.returncode, both.stdout, both.stderr) == (2, "", "lumoe: --json and --csv: choose one\n")


def test_what_a_corpus_holds_is_printed_for_people_and_for_programs(tmp_path: Path) -> None:
    for split, text in (("train", "one two\n\nthree"), ("valid", "four"), ("test", "five six")):
        (tmp_path / f"{split}.txt").write_text(text, encoding="utf-8")
    words = ["corpus", "build", "--source", f"mine=folder:{tmp_path}", "--output", str(tmp_path / "corpora")]
    read = pd.read_csv(io.StringIO(lumoe(*words, "--csv").stdout))
    assert list(read.columns) == ["corpus", "split", "documents", "characters"]
    assert read.set_index("split")["characters"].to_dict() == {"train": 14, "validation": 4, "test": 8}
    assert json.loads(lumoe(*words, "--json").stdout) == json.loads(read.to_json(orient="records"))
    assert "five" not in lumoe(*words).stdout
    assert "│ mine   │ test " in lumoe(*words).stdout


def test_both_forms_at_once_are_a_mistake() -> None:
    done = lumoe("photonics", "layers", "--json", "--csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert "choose one" in done.stderr


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "lumoe.plots.moe.configurations, lumoe.plots.photonics.pcnna, lumoe.plots.photonics.winograd, "
            "lumoe.plots.moe.training",
            "torch scipy seaborn",
        ),
        (
            "lumoe.pipeline.claims, lumoe.pipeline.provenance, lumoe.cli.plot, lumoe.cli.photonics, lumoe.cli.moe",
            "torch matplotlib",
        ),
        (
            "lumoe.moe.engine.engine, lumoe.moe.evaluation.quality, lumoe.moe.quantization.calibration",
            "transformers sklearn auto_gptq",
        ),
        ("lumoe.photonics.studies.pcnna, lumoe.photonics.studies.metrics", "torch transformers"),
    ],
)
def test_a_command_starts_without_what_it_does_not_need(modules: str, heavy: str) -> None:
    code = f"import sys, {modules}; print(*sorted(set({heavy.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_each_claim_needs_its_figure(tmp_path: Path) -> None:
    table = Path(__file__).parents[2] / "figures/uncertainty-winograd-speed.csv"
    words = ["plot", "photonics", "tornado", "--table", str(table), "--claim", "winograd-speed"]
    done = lumoe(*words, "--claim", "winograd-power", "--output", str(tmp_path / "a.svg"))
    assert done.returncode == 2
    assert "2 --claim but 1 --output" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_overview_loads_no_group() -> None:
    code = "import sys; from lumoe.cli import main; sys.argv = ['lumoe', '--help']\ntry: main()\nfinally: "
    code += "print(*sorted({'pandas', 'torch', 'pydantic', 'lumoe.cli.moe'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []
    assert all(name in done.stdout for name in (*GROUPS, "doctor"))


def test_a_misspelt_group_names_the_nearest() -> None:
    done = lumoe("photonic")
    assert done.returncode == 2
    assert "Did you mean 'photonics'?" in done.stderr

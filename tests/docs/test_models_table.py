"""The README says what can be opened as `lumoe models` does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from typer.testing import CliRunner

from lumoe.cli.models import FAMILIES, FORMATS, app
from lumoe.errors import UserError

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- lumoe models --markdown -->\n", "<!-- end of lumoe models -->"


def printed(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


def test_the_readme_has_the_tables_of_the_command() -> None:
    """After a change of families or formats: put the output of the command between the two comments."""
    _, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    table, found, _ = rest.partition(END)
    assert found
    assert table.strip() == printed("--markdown").strip()


def test_every_form_tells_the_same() -> None:
    told, markdown, people = json.loads(printed("--json")), printed("--markdown"), printed()
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    rows = [re.split(r"(?<!\\\\) \| ", line.strip("| ")) for line in lines]
    assert len(rows) == 2 + len(told["families"]) + len(told["formats"])
    for heads, found in ((FAMILIES, told["families"]), (FORMATS, told["formats"])):
        assert rows.pop(0) == list(heads.values())
        for record in found:
            row = rows.pop(0)
            assert list(record) == list(heads)
            first = next(iter(record.values()))
            assert (row[0], len(row)) == (first, len(heads))
    models = {kind for record in told["families"] for kind in record["model_type"]}
    assert {"mixtral", "qwen3_5_moe"} < models
    assert all(word in people for word in ("mixtral", "qwen3_moe", "IQ4_XS", "llama.cpp"))


def test_two_forms_at_once_are_a_mistake() -> None:
    done = CliRunner().invoke(app, ["--json", "--markdown"])
    assert isinstance(done.exception, UserError)
    assert "choose one" in str(done.exception)

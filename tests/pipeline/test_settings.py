"""The settings: generated files agree with the models, and a wrong key stops the run with one useful sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lumoe.errors import UserError
from lumoe.pipeline.settings import Settings, default_yaml, validate

ROOT = Path(__file__).parents[2]


def test_default_yaml_is_generated_from_the_models() -> None:
    assert (ROOT / "config/default.yaml").read_text(encoding="utf-8") == default_yaml()


def test_schema_is_generated_from_the_models() -> None:
    assert json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8")) == Settings.model_json_schema()


def test_default_yaml_gives_exactly_the_defaults() -> None:
    assert validate(yaml.safe_load(default_yaml())) == Settings()


@pytest.mark.parametrize("path", sorted(ROOT.glob("config/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path: Path) -> None:
    validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": 1}, ["'modle'", "1", "'model'"]),
        ({"perplexity": {"counst": [1]}}, ["'perplexity.counst'", "[1]", "'counts'"]),
        ({"model": {"training": {"layer": 3}}}, ["'model.training.layer'", "3", "'layers'"]),
        ({"perplexity": {"window": "long"}}, ["'perplexity.window'", "'long'", "integer"]),
        ({"throughput": {"repeats": 0}}, ["'throughput.repeats'", "0", "greater than or equal to 1"]),
        ({"quantization": {"group_size": 48}}, ["'quantization.group_size'", "48", "64"]),
        ({"seed": True}, ["'seed'", "True", "integer"]),
    ],
)
def test_a_wrong_key_or_value_gives_one_sentence(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        validate(values)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_two_wrong_keys_are_counted() -> None:
    with pytest.raises(UserError, match=r"\(1 more\)"):
        validate({"a": 1, "b": 2})


def test_check_command_prints_the_settings(tmp_path: Path) -> None:
    from lumoe.cli.config import app

    file = tmp_path / "mine.yaml"
    file.write_text("seed: 7\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == Settings(seed=7).model_dump()


def test_null_takes_a_default_name_away() -> None:
    settings = validate({"corpora": {"sources": {"scipy": None, "ptb": "folder:ptb"}}})
    assert settings.corpora.sources == {"ptb": "folder:ptb"}

"""The options of a cache that adapts: applied or refused, never ignored."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lumoe.cli.moe.run import app as generate
from lumoe.cli.options import caching_of
from lumoe.cli.serve import app as serve
from lumoe.errors import UserError
from lumoe.moe.planning.caching import Caching

MODEL = Path(__file__).parents[2] / "data/models/mini-mixtral"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--half-life", "8"], "--half-life: policy auto"),
        (["--policy", "lru", "--half-life", "8"], "--half-life: policy lru"),
        (["--policy", "lfru", "--half-life", "0"], "must be more than 0"),
        (["--policy", "lfru", "--half-life", "nan"], "must be more than 0"),
        (["--cache-scope", "model"], "--cache-scope: policy auto"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(words: list[str], message: str) -> None:
    for app, rest in ((serve, []), (generate, ["a prompt"])):
        found = CliRunner().invoke(app, ["--model", str(MODEL), *rest, *words])
        assert isinstance(found.exception, UserError)
        assert message in str(found.exception)
    assert CliRunner().invoke(serve, ["--model", str(MODEL), "--policy", "mru"]).exit_code == 2
    assert CliRunner().invoke(serve, ["--model", str(MODEL), "--prefetch", "-1"]).exit_code == 2


def test_options_become_what_they_say() -> None:
    assert caching_of("static", None, None, 0, unasked) == Caching()
    assert caching_of("lru", None, None, 3, unasked) == Caching("lru", "layer", prefetch=3)
    assert caching_of("lfru", "model", 7.5, 1, unasked) == Caching("lfru", "model", 7.5, 1)
    assert caching_of("lfru", None, None, 0, unasked).half_life == Caching("lfru").half_life


def test_a_text_goes_on_alike_under_every_policy() -> None:
    words = ["--model", str(MODEL), "--budget", "40%", "--prefer", "quality", "--new-tokens", "12", "--threads", "1"]
    found = {}
    ways = ([], ["--policy", "lru"], ["--policy", "lfru", "--cache-scope", "model", "--half-life", "16"],
            ["--policy", "lfru", "--prefetch", "2"])  # fmt: skip
    for more in ways:
        done = CliRunner().invoke(generate, [*words, *more, "Return the"], catch_exceptions=False)
        found[" ".join(more)] = done
    assert len({done.stdout for done in found.values()}) == 1
    misses = {name: done.stderr.partition(" hits, ")[2].partition(" misses")[0] for name, done in found.items()}
    assert len({*misses.values()}) > 1, "what is resident is not the same"
    assert [name for name, done in found.items() if "guesses right" in done.stderr] == ["--policy lfru --prefetch 2"]


def unasked() -> Caching:
    raise AssertionError("a policy that is given needs no other")


def test_auto_is_what_was_found_best_and_chooses_for_itself() -> None:
    best = Caching("lfru", "model", 32.0)
    assert caching_of("auto", None, None, 2, lambda: best) == Caching("lfru", "model", 32.0, prefetch=2)
    for scope, half_life in (("layer", None), (None, 8.0)):
        with pytest.raises(UserError, match="policy auto"):
            caching_of("auto", scope, half_life, 0, lambda: best)  # type: ignore[arg-type]

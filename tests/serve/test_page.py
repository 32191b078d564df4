"""The page at `/`, in a headless browser: it shows the engine, changes the budget, and generates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PROGRAM, Browser
from running import Running, serving

from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no chromium is installed")


@pytest.fixture(scope="module")
def open_page(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Browser]]:
    with serving(Setup(model, budget="60%"), Limits(slots=4, context=128)) as running:
        browser = Browser(tmp_path_factory.mktemp("profile"), running.url + "/")
        try:
            assert browser.wait("document.getElementById('status')?.textContent === 'live'")
            yield running, browser
        finally:
            browser.close()


def test_the_page_shows_every_expert(open_page: tuple[Running, Browser]) -> None:
    running, browser = open_page
    plan, held = running.server.engine.plan, running.server.engine.store.resident()
    cells = browser.evaluate("[...document.querySelectorAll('#grid td')].map((c) => [c.title, c.className])")
    assert len(cells) == plan.bits.size
    for (title, place), bits, near in zip(cells, plan.bits.flatten(), held.flatten(), strict=True):
        assert f"{bits} bits" in title
        assert place == ("fast" if near else "slow")
    assert browser.evaluate("document.getElementById('model').textContent") == running.name


def test_the_slider_changes_the_budget(open_page: tuple[Running, Browser]) -> None:
    running, browser = open_page
    governor = running.server.governor
    before = governor.changes
    browser.evaluate("budget.value = budget.max; budget.dispatchEvent(new Event('change'))")
    assert browser.wait("planned.textContent.includes(' 0 of 12 experts quantised')")
    assert governor.budget_bytes >= governor.whole_bytes
    browser.evaluate("preference.value = 'quality'; preference.dispatchEvent(new Event('change'))")
    assert browser.wait("planned.textContent.startsWith('planned for quality')")
    assert governor.changes >= before + 2
    browser.evaluate("budget.value = budget.min; budget.dispatchEvent(new Event('change'))")
    assert browser.wait("document.querySelectorAll('#grid td.slow').length > 0")


def test_dragging_the_slider_shows_what_a_budget_would_give(open_page: tuple[Running, Browser]) -> None:
    running, browser = open_page
    governor = running.server.governor
    before = governor.changes
    browser.evaluate("budget.value = budget.max; budget.dispatchEvent(new Event('input'))")
    assert browser.wait("document.getElementById('plan-text').textContent.startsWith('0 quantised, 12 of 12')")
    browser.evaluate("budget.value = budget.min; budget.dispatchEvent(new Event('input'))")
    plan = governor.propose(governor.minimum_bytes, governor.default).plan
    assert browser.wait(f"document.getElementById('plan-text').textContent.startsWith('{plan.quantized_experts} quan')")
    assert governor.changes == before
    browser.evaluate("budget.dispatchEvent(new Event('change'))")


def test_the_page_shows_keys_and_values_and_prefix_hits(open_page: tuple[Running, Browser]) -> None:
    running, browser = open_page
    with running.client() as client:
        for _ in range(2):
            body = {"model": running.name, "prompt": "the quick brown fox jumps " * 4, "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200
        state = client.get("/v1/state").json()
    assert state["reused_tokens"] > 0
    assert state["bytes_idle_kv"] == state["bytes_kv"] > 0
    assert browser.wait("document.getElementById('tier-text').textContent.includes('idle prefixes 0.0') === false")
    share = f"{100 * state['reused_tokens'] / state['prompt_tokens']:.1f} %"
    assert browser.wait(f"document.getElementById('figures').textContent.includes('prefix hits{share}')")


def test_a_prompt_is_answered_as_it_grows(open_page: tuple[Running, Browser]) -> None:
    _, browser = open_page
    browser.evaluate(
        "prompt = document.getElementById('prompt'); prompt.value = '<b>the</b> quick'; tokens.value = 9; go.click()"
    )
    assert browser.wait("timing.textContent.startsWith('9 tokens')"), browser.evaluate("timing.textContent")
    assert browser.evaluate("text.textContent.startsWith('<b>the</b> quick')")
    assert browser.evaluate("text.querySelector('b') === null"), "text is shown as text"
    browser.evaluate("tokens.value = 100000; go.click()")
    assert browser.wait("timing.textContent.includes('context holds 128 tokens')")


def test_the_page_asks_only_its_own_server_and_throws_nothing(open_page: tuple[Running, Browser]) -> None:
    running, browser = open_page
    browser.evaluate("1")
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith((running.url, "data:,", "about:"))] == []

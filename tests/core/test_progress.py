"""Progress goes to standard error, in time, and never changes what is iterated."""

from __future__ import annotations

import io
import time

import pytest

from lumoe import progress


class Clock:
    """A monotonic clock that moves a step at every look."""

    def __init__(self, step_s: float) -> None:
        self.now, self.step_s = 0.0, step_s

    def monotonic(self) -> float:
        self.now += self.step_s
        return self.now


@pytest.fixture(autouse=True)
def _loud(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(progress.QUIET, raising=False)


def test_plain_lines_with_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "time", Clock(4.0))
    assert list(progress.track([10, 20, 30, 40, 50], "experts")) == [10, 20, 30, 40, 50]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["experts: 1 of 5, 4 s, 16 s left", "experts: 4 of 5, 16 s, 4 s left"]


def test_what_is_short_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "time", Clock(0.01))
    assert sum(progress.track(range(20), "experts")) == 190
    assert capsys.readouterr() == ("", "")


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(progress, "time", Clock(100.0))
    monkeypatch.setenv(progress.QUIET, "1")
    assert list(progress.track(iter("ab"), "experts", total=2)) == ["a", "b"]
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make standard error a terminal; in the test itself, because between fixture and test pytest puts its own."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "SHORT_S", 0.02)
    return screen


def seen(screen: Terminal, text: str) -> bool:
    """Wait until the display, which redraws itself ten times a second, has shown `text`."""
    end = time.monotonic() + 10
    while text not in screen.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    return text in screen.getvalue()


def test_a_terminal_gets_a_bar_before_the_first_item_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    for item in progress.track("abc", "experts"):
        if item == "a":
            assert seen(screen, "experts")
            assert "0/3" in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue(), "the cursor is back"


def test_a_loop_in_a_loop_is_a_second_line(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    def inner() -> int:
        return sum(1 for _ in progress.track(range(2), "tokens") if seen(screen, "tokens"))

    assert [inner() for _ in progress.track("ab", "experts") if seen(screen, "experts")] == [2, 2]
    assert progress._screen.cache_info().currsize == 0, "the display ends with the outermost loop"


def test_a_fault_ends_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)

    def fail() -> None:
        for number in progress.track([0], "experts"):
            assert seen(screen, "experts")
            1 / number

    with pytest.raises(ZeroDivisionError):
        fail()
    assert progress._screen.cache_info().currsize == 0


def test_without_a_length_it_counts() -> None:
    assert progress.line("documents", 7, None, 12.4) == "documents: 7, 12 s"
    assert progress.line("documents", 7, 7, 14) == "documents: 7 of 7, 14 s, 0 s left"

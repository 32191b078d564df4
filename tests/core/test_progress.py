"""Progress goes to standard error, in time, and never changes what is iterated."""

from __future__ import annotations

import io

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


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "time", Clock(3.0))
    assert list(progress.track("abc", "experts")) == ["a", "b", "c"]
    assert "experts" in screen.getvalue()


def test_without_a_length_it_counts() -> None:
    assert progress.line("documents", 7, None, 12.4) == "documents: 7, 12 s"
    assert progress.line("documents", 7, 7, 14) == "documents: 7 of 7, 14 s, 0 s left"

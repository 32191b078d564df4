"""The one error that a user's mistake raises."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or the list of known words."""
    words = sorted(known)
    close = get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(words)}"

"""The one error that a user's mistake raises, and what helps to phrase it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

LONGEST = 1500


class UserError(ValueError):
    """Something the user gave is wrong.

    The message is one sentence that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2. What it quotes from a file may be anything, so it is kept to one
    line of bounded length.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]}…")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or the list of known words."""
    words = sorted(known)
    close = get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(words)}"


@contextmanager
def about(path: str | Path) -> Iterator[None]:
    """Name the file `path` in a UserError of what is done with its content."""
    try:
        yield
    except UserError as error:
        raise (error if str(path) in str(error) else UserError(f"{path}: {error}")) from None

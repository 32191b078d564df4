"""From tokens to text as it grows: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


def find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Return where the stop string begins that is complete first in `text`; of several, the one that begins first."""
    ends = [(begin + len(stop), begin) for stop in stops if (begin := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


def held_back(text: str, stops: Sequence[str]) -> int:
    """Return how many characters at the end of `text` may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops if len(stop) > size):
            return size
    return 0


class TextStream:
    """The text of one sequence, released piece by piece."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: Sequence[str]) -> None:
        """Start after `prompt`: whether a token begins with a space depends on what precedes it."""
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._stops = tuple(stops)
        self._undecoded: list[int] = []
        self._waiting = ""
        self.released = 0
        self.decoded = 0
        self.stopped = False

    def push(self, token: int) -> str:
        """Append a token; return the text that can be released now. Sets `stopped` when a stop string is complete."""
        piece = self._decoder.step(self._tokenizer, token)
        if piece is None:
            self._undecoded.append(token)
            return ""
        self._undecoded.clear()
        return self._release(piece)

    def finish(self) -> str:
        """Return what was held back; bytes that never became a character are shown as U+FFFD."""
        rest = self._tokenizer.decode(self._undecoded, skip_special_tokens=True) if self._undecoded else ""
        piece = self._release(rest) if rest else ""
        if self.stopped:
            return piece
        piece, self._waiting = piece + self._waiting, ""
        self.released = self.decoded
        return piece

    def _release(self, piece: str) -> str:
        self.decoded += len(piece)
        text = self._waiting + piece
        begin = find_stop(text, self._stops)
        if begin is not None:
            self.stopped = True
            self._waiting = ""
            keep = begin
        else:
            keep = len(text) - held_back(text, self._stops)
            self._waiting = text[keep:]
        self.released += keep
        return text[:keep]

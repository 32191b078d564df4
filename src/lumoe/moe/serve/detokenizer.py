"""From tokens to text as it grows: whole characters only, and nothing of a stop string."""

from __future__ import annotations

import re
from codecs import getincrementaldecoder
from collections.abc import Collection, Sequence
from copy import copy

from tokenizers import Tokenizer

# Byte-level tokenizers write each byte as a letter, others name the bytes of characters that they lack.
# A byte is the character of its number where that shows; the others follow each other from 256 on (GPT-2).
_SHOWN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [value for value in range(256) if value not in _SHOWN]
_BYTE_OF = {chr(value): value for value in _SHOWN} | {chr(256 + n): value for n, value in enumerate(_HIDDEN)}
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


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


class TokenBytes:
    """The bytes that each token of a tokenizer adds to a text; a character may be spread over several tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = self._named = frozenset(index for index, token in added.items() if token.special)
        # A decoder takes bytes apart in ways of its own: what symbols stand for is read off one that is known.
        self._falls_back = self._decodes("<0x41>", "A")
        self._byte_level = self._decodes("\u0120", " ")
        # Whether a token begins with a space shows only behind another one.
        self._before = next((found for text in "ae." for found in self._ordinary(text)), [])
        self._known: dict[int, bytes] = {}

    def showing(self, names: Collection[str]) -> TokenBytes:
        """Return the same tokens, but of the special ones those with these names are text."""
        shown = copy(self)
        shown.special = frozenset(token for token in self._named if self._tokenizer.id_to_token(token) not in names)
        return shown

    def showing_all(self) -> TokenBytes:
        """Return the same tokens, of which all are text."""
        shown = copy(self)
        shown.special = frozenset()
        return shown

    def of(self, token: int) -> bytes:
        """Return the bytes of one token, as it stands within a text; those of a special token are its name."""
        if token not in self._known:
            self._known[token] = self._find(token)
        return self._known[token]

    def spellings(self, count: int, never: Collection[int]) -> list[bytes]:
        """Return the bytes of the first `count` tokens; special ones, those of `never` and missing ones have none."""
        known, none = self._tokenizer.get_vocab_size(with_added_tokens=True), {*self._named, *never}
        # Not kept here: these are all of them.
        return [self._find(token) if token < known and token not in none else b"" for token in range(count)]

    def is_byte(self, token: int) -> bool:
        """Whether the token is one byte of a character that the vocabulary lacks."""
        return self._falls_back and _BYTE_TOKEN.fullmatch(str(self._tokenizer.id_to_token(token))) is not None

    def _find(self, token: int) -> bytes:
        symbol = str(self._tokenizer.id_to_token(token))
        if token in self._named:
            return symbol.encode()
        if self.is_byte(token):
            return bytes.fromhex(symbol[3:5])
        if self._byte_level and all(letter in _BYTE_OF for letter in symbol):
            return bytes(_BYTE_OF[letter] for letter in symbol)
        whole = self._tokenizer.decode([*self._before, token], skip_special_tokens=False)
        return str(whole).removeprefix(self._tokenizer.decode(self._before, skip_special_tokens=False)).encode()

    def _decodes(self, symbol: str, text: str) -> bool:
        index = self._tokenizer.token_to_id(symbol)
        return index is not None and self._tokenizer.decode([index], skip_special_tokens=False) == text

    def _ordinary(self, text: str) -> list[list[int]]:
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [ids] if ids and self._tokenizer.decode(ids, skip_special_tokens=False) == text else []


class TextStream:
    """The text of one sequence, released piece by piece.

    A byte that begins no character, or breaks one off, is U+FFFD. Special tokens are not in the text, but stop strings
    are looked for in what the model wrote, special tokens included.

    Attributes:
        released: characters that were handed out.
        decoded: characters so far, those that are held back included.
        begun: where in the text the last token begins, or the character that its first byte belongs to.
        stopped: whether a stop string is complete.
        stop: which one it is.
    """

    def __init__(
        self, tokens: TokenBytes, prompt: Sequence[int], stops: Sequence[str], show_stop: bool = False
    ) -> None:
        """Start after `prompt`: a character may have begun there.

        Args:
            show_stop: whether the stop string that ends the text is part of it.
        """
        self._tokens, self._show_stop = tokens, show_stop
        self._decoder = getincrementaldecoder("utf-8")("replace")
        for token in prompt:
            self._decoder.decode(self._bytes(token))
        self._stops = tuple(stops)
        # What may become a stop string, and of each of its characters whether it is text: special tokens are not.
        self._waiting, self._is_text = "", list[bool]()
        self.released = self.decoded = self.begun = 0
        self.stopped = False
        self.stop: str | None = None

    def look_for(self, stops: Sequence[str]) -> None:
        """Look for stop strings in what comes from here on."""
        self._stops = tuple(stops)

    def push(self, token: int) -> str:
        """Append a token; return the text that can be released now. Sets `stopped` when a stop string is complete."""
        self.begun = self.decoded
        raw = self._bytes(token)
        if not raw:
            return self._push_special(self._tokens.of(token).decode()) if self._stops else ""
        piece = self._decoder.decode(raw[:1])
        # Either this byte ended a character, the last one of the piece, or the one that it is part of comes next.
        self.begun += len(piece) if self._decoder.getstate()[0] else len(piece) - 1
        piece += self._decoder.decode(raw[1:])
        return self._release(piece) if piece else ""

    def finish(self) -> str:
        """Return what was held back; bytes that never became a character are shown as U+FFFD."""
        rest = self._decoder.decode(b"", final=True)
        piece = self._release(rest) if rest else ""
        if self.stopped:
            return piece
        self._stops = ()
        return piece + self._release("")

    def _push_special(self, name: str) -> str:
        piece = ""
        if any(name in stop for stop in self._stops):
            # The text may end here: a character that is not whole by now is none.
            piece = self._release(self._decoder.decode(b"", final=True))
        return piece if self.stopped else piece + self._release(name, is_text=False)

    def _bytes(self, token: int) -> bytes:
        return b"" if token in self._tokens.special else self._tokens.of(token)

    def _release(self, piece: str, is_text: bool = True) -> str:
        self.decoded += len(piece) if is_text else 0
        text, kinds = self._waiting + piece, [*self._is_text, *[is_text] * len(piece)]
        begin = find_stop(text, self._stops)
        self.stopped = begin is not None
        if begin is not None:
            self.stop = min((stop for stop in self._stops if text.startswith(stop, begin)), key=len)
        keep = len(text) - held_back(text, self._stops) if begin is None else begin
        if self._show_stop and begin is not None:
            keep += len(self.stop or "")
        self._waiting, self._is_text = ("", []) if self.stopped else (text[keep:], kinds[keep:])
        shown = "".join(letter for letter, kind in zip(text[:keep], kinds, strict=False) if kind)
        self.released += len(shown)
        return shown

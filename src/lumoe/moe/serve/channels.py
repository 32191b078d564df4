"""An answer that is messages in channels told apart while it arrives: gpt-oss's "harmony".

A message is a header, `<|message|>`, what it says, and a mark that ends it. The header names a channel, and for a call
the function: "analysis" is a thought, everything else that is sent to nobody is said to the user.
"""

from __future__ import annotations

import re

from lumoe.moe.serve.detokenizer import held_back
from lumoe.moe.serve.reading import Manner, Reader, Text, Thought
from lumoe.moe.serve.tools import HARMONY, within_string

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", *HARMONY.ends)
# A message that is not ended ends where the next one begins.
_BEHIND = (*_ENDS, "<|start|>", "<|channel|>")
_BEFORE = ("<|start|>", "<|channel|>", "<|constrain|>", _MESSAGE, "to=")
# As much of a header as there may be.
_HEADER = re.compile(
    r"(?:<\|start\|>\w*)?\s*(?:to=[^\s<]*)?\s*(?:<\|channel\|>\s*\w*\s*(?:to=[^\s<]*)?)?\s*(?:<\|constrain\|>)?\s*\w*\s*"
)
# Messages of one kind are one text for the client.
_BETWEEN = "\n\n"


class ChannelReader(Reader):
    """Reads one answer, message by message; a call that is none is text, its header too."""

    def __init__(self, manner: Manner) -> None:
        super().__init__(manner)
        self._text = manner.header or ""
        self._header = ""
        self._kind: type[Text | Thought] = Text
        self._kinds = set[type[Text | Thought]]()
        self._step = self._between

    def _between(self, done: bool) -> bool:
        text = self._text.lstrip()
        for mark in _ENDS:
            if text.startswith(mark):
                self._text = text[len(mark) :]
                return True
        begins = text.startswith(_BEFORE)
        header, found, rest = text.partition(_MESSAGE)
        if begins and found:
            self._begin_message(header, rest)
            return True
        if not done and (begins or any(mark.startswith(text) for mark in (*_BEFORE, *_ENDS))):
            return False
        if done and begins:
            # A header that was cut off says nothing.
            self._put(Text("" if _HEADER.fullmatch(text) else self._text))
            self._text = ""
            return False
        # A model that writes no header says something nevertheless.
        self._kind, self._step = Text, self._tell
        return True

    def _begin_message(self, header: str, rest: str) -> None:
        _, started, header = header.rpartition("<|start|>")
        header = (re.sub(r"^\s*\w+", "", header) if started else header).strip()
        self._header, self._text, self._seen = header, rest, 0
        thought = re.search(r"<\|channel\|>\s*analysis\b", header) is not None
        to = HARMONY.recipient(header)
        # Tools of its own, which nobody runs here, it asks for in its thoughts.
        called = to is not None and (not thought or to.startswith("functions."))
        self._kind, self._step = (Thought if thought else Text), (self._called if called else self._tell)

    def _tell(self, done: bool) -> bool:
        found = [(begin, mark) for mark in _BEHIND if (begin := self._text.find(mark)) >= 0]
        if not found:
            keep = 0 if done else held_back(self._text, _BEHIND)
            self._told(self._text[: len(self._text) - keep])
            self._text = self._text[len(self._text) - keep :]
            return False
        begin, _ = min(found)
        self._told(self._text[:begin])
        self._end_message(begin)
        return True

    def _told(self, text: str) -> None:
        if not text:
            return
        if self._header and self._kind in self._kinds:
            text = _BETWEEN + text
        # What goes on with a message is not set apart from it.
        self._header = ""
        self._kinds.add(self._kind)
        self._put(self._kind(text))

    def _end_message(self, end: int) -> None:
        self._text, self._header, self._step = self._text[end:], "", self._between

    def _called(self, done: bool) -> bool:
        seen, self._seen = max(self._seen - 1, 0), len(self._text)
        if not done and self._text.find("|>", seen) < 0:
            return False
        ends = sorted(found.start() for found in re.finditer("|".join(map(re.escape, _BEHIND)), self._text))
        for end in ends or [len(self._text)] * done:
            body = self._text[:end]
            try:
                form, parameters = self._form, self._manner.parameters or {}
                read = None if form is None else form.read(self._header, body, parameters, done=True)
            except ValueError:
                # A mark within a string of JSON is part of it.
                if within_string(body) and end < len(self._text):
                    continue
                read = None
            if read is None:
                return self._no_call(end)
            self._parts += read.calls
            self._end_message(end)
            return True
        return self._no_call(ends[0]) if done else False

    def _no_call(self, end: int) -> bool:
        header, body, self._kind = self._header, self._text[:end], Text
        self._told(f"{header}{_MESSAGE}{body}")
        self._end_message(end)
        return True


def reader_of(manner: Manner) -> Reader:
    """Return what reads an answer that is written so."""
    return Reader(manner) if manner.header is None else ChannelReader(manner)

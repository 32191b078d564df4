"""An answer told apart while it arrives: what the model thought, what it says, and what it calls.

However the text is cut into pieces, the parts are the same.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lumoe.moe.serve.detokenizer import held_back
from lumoe.moe.serve.tools import Call, Format

# Between what and what a family of models thinks.
THINKING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True)
class Text:
    """Something said."""

    text: str


@dataclass(frozen=True)
class Thought:
    """Something thought before the answer."""

    text: str


Part = Text | Thought | Call


@dataclass(frozen=True)
class Manner:
    """How an answer is written.

    Attributes:
        form: how calls are written; None reads none.
        parameters: the schema of each function's arguments, by the function's name.
        tags: between what the model thinks; None if it does not.
        thinking: whether the prompt ended within a thought.
        around: what the answer may stand between.
        header: of an answer that is messages in channels: the header of the one that the prompt ended within, or
            nothing; None where an answer is no such messages.
    """

    form: Format | None = None
    parameters: Mapping[str, Mapping[str, Any]] | None = None
    tags: tuple[str, str] | None = None
    thinking: bool = False
    around: tuple[str, str] | None = None
    header: str | None = None


class Reader:
    """Reads one answer. A call is handed out when it is whole; what turns out to be none is text."""

    def __init__(self, manner: Manner) -> None:
        self._manner, self._form = manner, manner.form
        self._text = ""
        # Spaces before a call are not said, and before it is whole nobody knows whether it is one.
        self._spaces, self._mark = "", ""
        self._after_call = self._said = False
        self._seen = 0
        self._parts = list[Part]()
        # What may stand before the answer, in this order, and what ends it then.
        lead = manner.form.lead if manner.form else ""
        self._leads = [word for word in ((manner.around or ("",))[0], lead) if word]
        self._led = False
        self._closing: str | None = None
        self._step = self._thought if manner.thinking else self._begin if manner.tags else self._open

    def push(self, text: str) -> list[Part]:
        """Take more of the answer; return the parts that are certain now."""
        self._text += text
        return self._read(done=False)

    def finish(self) -> list[Part]:
        """Return the parts that are left when the answer has ended."""
        return self._read(done=True)

    def _read(self, done: bool) -> list[Part]:
        self._parts = []
        while self._step(done):
            pass
        if done:
            # Spaces that separate the last call from nothing are not said.
            self._put(Text("" if self._after_call else self._spaces))
            self._spaces = ""
        return self._parts

    def _put(self, part: Text | Thought) -> None:
        if not part.text:
            return
        last = self._parts[-1] if self._parts else None
        if isinstance(last, Text | Thought) and type(last) is type(part):
            self._parts[-1] = type(part)(last.text + part.text)
        else:
            self._parts.append(part)

    # Each step takes what it can from the text and returns whether the next one can go on with the rest.

    def _begin(self, done: bool) -> bool:
        assert self._manner.tags is not None
        opening, begin = self._manner.tags[0], self._text.lstrip()
        if begin.startswith(opening):
            self._text, self._step = begin[len(opening) :], self._thought
            return True
        if opening.startswith(begin) and not done:
            return False
        self._step = self._open
        return True

    def _open(self, done: bool) -> bool:
        begin = self._text.lstrip()
        while self._leads:
            lead = self._leads[0]
            if begin.startswith(lead):
                self._text = begin = begin[len(lead) :].lstrip()
                self._led = True
                if self._manner.around and lead == self._manner.around[0]:
                    self._closing = self._manner.around[1]
            elif lead.startswith(begin) and not done:
                return False
            self._leads.pop(0)
        if self._led:
            # Spaces behind a mark are of it.
            self._text = begin
            if not begin and not done:
                return False
        self._step = self._say
        return True

    def _thought(self, done: bool) -> bool:
        assert self._manner.tags is not None
        closing = self._manner.tags[1]
        if not self._said:
            self._text = self._text.lstrip()
        end = self._text.find(closing)
        if end >= 0:
            self._put(Thought(self._text[:end].rstrip()))
            self._text, self._step, self._said = self._text[end + len(closing) :], self._spoken, False
            return True
        # Spaces at the end of a thought are none of it.
        keep = 0 if done else held_back(self._text, (closing,))
        sure = len(self._text[: len(self._text) - keep].rstrip())
        self._put(Thought(self._text[:sure]))
        self._said = self._said or sure > 0
        self._text = "" if done else self._text[sure:]
        return False

    def _spoken(self, done: bool) -> bool:
        self._text = self._text.lstrip()
        if not self._text and not done:
            return False
        self._step = self._open
        return True

    def _say(self, done: bool) -> bool:
        marks = (*self._form.marks, *self._form.dropped) if self._form else ()
        marks = (*marks, self._closing) if self._closing else marks
        if not marks:
            self._put(Text(self._spaces + self._text))
            self._text = self._spaces = ""
            return False
        found = [(begin, mark) for mark in marks if (begin := self._text.find(mark)) >= 0]
        if not found:
            keep = 0 if done else held_back(self._text, marks)
            said, self._text = self._text[: len(self._text) - keep], self._text[len(self._text) - keep :]
            before = self._form
            self._hold(said)
            # What follows text is text where calls come first.
            return self._form is not before
        begin, mark = min(found)
        said, rest = self._text[:begin], self._text[begin + len(mark) :]
        self._hold(said)
        if mark == self._closing:
            # Spaces on either side are of the marks.
            self._text, self._spaces, self._closing, self._step = rest, "", None, self._spoken
        elif self._form is None:
            self._text = mark + rest
        else:
            self._text = rest
            if mark in self._form.marks:
                self._mark, self._seen, self._step = mark, 0, self._call
        return True

    def _hold(self, said: str) -> None:
        """Say a text but for the spaces at its end."""
        text = self._spaces + said
        sure = len(text.rstrip(self._form.spaces if self._form else string.whitespace))
        self._put(Text(text[:sure]))
        self._spaces = text[sure:]
        if sure:
            self._after_call = False
            self._form = None if self._form and self._form.first else self._form

    def _call(self, done: bool) -> bool:
        assert self._form is not None
        # Calls end with one of these; until one comes there is nothing to read.
        news, self._seen = self._text[self._seen :], len(self._text)
        if not done and not any(end in news for end in ">]}"):
            return False
        try:
            read = self._form.read(self._mark, self._text, self._manner.parameters or {}, done)
        except ValueError:
            self._step = self._say
            self._hold(self._mark)
            return True
        if read is None:
            return False
        self._parts += read.calls
        self._text, self._step = self._text[read.used :], self._say
        self._spaces, self._after_call = "", True
        return True

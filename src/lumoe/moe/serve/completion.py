"""The answer to a completion: the prompt before it if that is asked for, and the best of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lumoe.moe.serve.answers import Answer
from lumoe.moe.serve.detokenizer import TextStream, TokenBytes
from lumoe.moe.serve.generation import Generation, Piece
from lumoe.moe.serve.prompt_scores import PromptScores
from lumoe.moe.serve.prompts import Prompts


@dataclass(frozen=True)
class Echo:
    """A prompt as it is shown, and where in that text each of its tokens begins."""

    text: str
    offsets: tuple[int, ...]
    scores: PromptScores | None

    def before(self, piece: Piece, first: bool) -> Piece:
        """Return a piece of the answer behind the prompt; the first one brings the prompt with it."""
        size = len(self.text)
        sampled = tuple(replace(one, offset=one.offset + size) for one in piece.sampled)
        if first and self.scores is not None:
            known = zip(self.scores.found, self.offsets, strict=True)
            sampled = (*(replace(one, offset=offset) for one, offset in known), *sampled)
        return replace(piece, text=(self.text if first else "") + piece.text, sampled=sampled)


def echo(
    prompts: Prompts,
    asked: Sequence[str | list[int]],
    encoded: Sequence[list[int]],
    tokens: TokenBytes,
    top: int | None,
) -> list[Echo]:
    """Return how prompts are shown: a text as it is, token ids as the text that `tokens` make of them.

    Args:
        asked: the prompts as they came.
        encoded: the tokens of each.
        top: how many alternatives each token is reported with; None reports none of them.
    """
    return [
        _echo(prompt, ids, prompts, tokens, None if top is None else PromptScores(ids, top))
        for prompt, ids in zip(asked, encoded, strict=True)
    ]


def _echo(
    prompt: str | list[int], ids: list[int], prompts: Prompts, tokens: TokenBytes, scores: PromptScores | None
) -> Echo:
    text, offsets = _told(ids, prompts.tokens.showing_all() if isinstance(prompt, str) else tokens)
    if isinstance(prompt, str):
        shown = prompt
    else:
        # Tokenizers that write a space into a text's first word take it off again.
        added = text.startswith(" ") and not prompts.decode(ids).startswith(" ")
        shown = text[1:] if added else text
    places = _places(text, shown)
    return Echo(shown, tuple(places[offset] for offset in offsets), scores)


def _places(text: str, shown: str) -> list[int]:
    """Return where in `shown` each character of `text` is, which has some more, and where its end is.

    A tokenizer may put a name before a text, and a space before each part of one.
    """
    begin = len(text) - len(shown) if text.endswith(shown) else 0
    places, at = [0] * begin, 0
    for letter in text[begin:]:
        places.append(at)
        at += shown[at : at + 1] == letter
    return [*places, at]


def _told(ids: Sequence[int], tokens: TokenBytes) -> tuple[str, list[int]]:
    stream, pieces, offsets = TextStream(tokens, (), ()), [], []
    for token in ids:
        pieces.append(stream.push(token))
        offsets.append(min(stream.begun, stream.decoded))
    return "".join(pieces), offsets


class CompletionAnswer(Answer):
    """The continuations of the prompts of one request."""

    def __init__(
        self, model: str, prompts: Prompts, top: int | None, drawn: int, returned: int, echoes: Sequence[Echo] = ()
    ) -> None:
        """Begin an answer.

        Args:
            top: how many alternatives each token is reported with; None reports no log-probabilities.
            drawn: sequences of each prompt.
            returned: of these, the best that are told.
            echoes: the prompts, if they are to be shown.
        """
        super().__init__("completion", model, prompts, top)
        self._drawn, self._returned, self._echoes = drawn, returned, echoes
        self._begun = set[int]()

    def add(self, generation: Generation) -> None:
        """Take one more sequence; while its prompt is fed, log-probabilities are taken if they are to be told."""
        if self._echoes:
            generation.scores = self._echo(len(self.generations)).scores
        super().add(generation)

    def read(self, choice: int, piece: Piece) -> Piece:
        """Put the prompt before the first piece of a choice."""
        if not self._echoes:
            return piece
        first = choice not in self._begun
        self._begun.add(choice)
        return self._echo(choice).before(piece, first)

    def whole(self, texts: dict[int, list[Piece]]) -> dict[str, Any]:
        """Return the complete object, of each prompt's sequences the best by log-probability per token."""
        if self._drawn > self._returned:
            best = list[int]()
            for begin in range(0, len(self.generations), self._drawn):
                of_prompt = sorted(range(begin, begin + self._drawn), key=self._worth, reverse=True)
                best += of_prompt[: self._returned]
            texts = {place: texts[choice] for place, choice in enumerate(best)}
        return super().whole(texts)

    def _worth(self, choice: int) -> float:
        generation = self.generations[choice]
        return generation.logprob / max(generation.made, 1)

    def _echo(self, choice: int) -> Echo:
        return self._echoes[choice // self._drawn]

"""A model that gives a written answer to each cue, which is its last message; its tokens are scraps of the answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from running import Running, serving
from spoken import KINDS, scripted
from tokenizers import AddedToken

from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

# Turns, then the last one again: the model knows the last token alone, and that is the cue.
TEMPLATE = """\
{%- if tools %}tools {% for tool in tools %}{{ tool.function.name }} {% endfor %}<tool_call>{% endif %}
{%- for m in messages %}{{ m.role }} {{ m.content }}{% for call in m.tool_calls or [] %}
{{- call.id }} {{ call.function.name }}{% for key, value in call.function.arguments.items() %} {{ key }}{{ value }}
{%- endfor %}{% endfor %}{{ m.tool_call_id }} {% endfor %}{{ messages[-1].content }}"""


def cue(name: str) -> str:
    """Return what a message says for the answer `name`."""
    return f"<cue:{name}>"


def scraps(text: str, taken: set[str], special: Sequence[str]) -> list[str]:
    """Cut a text into pieces that no other text was cut into; special tokens are pieces of their own."""
    found, begin = [], 0
    while begin < len(text):
        mark = next((mark for mark in special if text.startswith(mark, begin)), None)
        ends = [place for mark in special if (place := text.find(mark, begin)) > begin]
        size = len(mark) if mark else 4
        # A piece has no space at its ends: some tokenizers drop it there.
        while not mark and (
            (piece := text[begin : begin + size]) in taken
            or (piece != piece.strip() and begin + size < min([len(text), *ends]))
        ):
            size += 1
        piece = text[begin : min([begin + size, len(text), *(ends if not mark else ())])]
        assert piece not in taken, f"{piece!r} cannot be told from an earlier piece"
        taken.add(piece)
        found.append(piece)
        begin += len(piece)
    return found


@contextmanager
def telling(
    folder: Path,
    answers: Mapping[str, str],
    kind: str = "byte-level",
    template: str = TEMPLATE,
    special: Sequence[str] = (),
    begun: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """Serve a model that answers to `cue(name)` with `answers[name]`, and goes on with `begun[text]` behind a text.

    `special` are special tokens in the answers.
    """
    begun = begun or {}
    tokenizer = KINDS[kind]()
    taken = set[str]()
    pieces = {cue(name): scraps(text, taken, special) for name, text in answers.items()}
    behind = {text: scraps(rest, taken, special) for text, rest in begun.items()}
    names = [
        *pieces,
        *(piece for scrap in (*pieces.values(), *behind.values()) for piece in scrap if piece not in special),
    ]
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=True) for name in special], special_tokens=True)
    tokenizer.chat_template = template
    follows = dict[int, int]()
    for begin, scrap in pieces.items():
        ids = tokenizer.convert_tokens_to_ids([begin, *scrap])
        follows |= dict(pairwise([*ids, tokenizer.eos_token_id]))
    for text, scrap in behind.items():
        last = tokenizer.encode(text, add_special_tokens=False)[-1]
        follows |= dict(pairwise([last, *tokenizer.convert_tokens_to_ids(scrap), tokenizer.eos_token_id]))
    model = scripted(folder / "model", tokenizer, follows, max_position_embeddings=1024)
    with serving(Setup(model, dtype="float32"), Limits(slots=4, context=1024)) as running:
        yield running

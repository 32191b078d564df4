"""Text as it grows: whole characters, no part of a stop string, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lumoe.moe.serve.detokenizer import TextStream, find_stop, held_back

ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def byte_tokenizer() -> Tokenizer:
    """One token a byte: characters beyond ASCII need several."""
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(sorted(ALPHABET))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = byte_tokenizer()
stops = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def released(text: str, stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(BYTES, BYTES.encode("x").ids, stops)
    pieces = []
    for token in BYTES.encode(text).ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            return pieces, True
    return [*pieces, stream.finish()], stream.stopped


@given(st.text("abcé🦊 ", max_size=30), stops)
def test_all_text_up_to_the_first_complete_stop_string_comes_out(text: str, stops: list[str]) -> None:
    pieces, stopped = released(text, stops)
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    # The stop string that is complete first counts; of those complete at once, the longest.
    complete = [stop for stop in stops if stop in text and text.find(stop) + len(stop) == min(ends)]
    expected = text[: min(ends) - max(map(len, complete))] if ends else text
    assert "".join(pieces) == expected
    assert stopped == bool(ends)


@given(st.text("abé", max_size=20), stops)
def test_what_is_held_back_could_still_become_a_stop_string(text: str, stops: list[str]) -> None:
    size = held_back(text, stops)
    tail = text[len(text) - size :]
    assert size == 0 or any(stop.startswith(tail) and stop != tail for stop in stops)
    longer = [stop for stop in stops for k in range(size + 1, min(len(stop), len(text) + 1)) if text.endswith(stop[:k])]
    assert not longer


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcd", ["abcd", "bc"], 1),
        ("abab", ["b"], 1),
        ("abc", ["x"], None),
        ("abc", ["abc", "c"], 0),
        ("", ["a"], None),
    ],
)
def test_where_a_stop_string_is_found(text: str, stops: list[str], expected: int | None) -> None:
    assert find_stop(text, stops) == expected


def test_half_a_character_is_shown_as_such_at_the_end() -> None:
    ids = BYTES.encode("a🦊").ids
    stream = TextStream(BYTES, [], [])
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert stream.finish() == "�"

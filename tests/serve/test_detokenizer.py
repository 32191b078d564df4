"""Text as it grows: whole characters, no part of a stop string, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from lumoe.moe.serve.detokenizer import TextStream, TokenBytes, find_stop, held_back

ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def byte_tokenizer() -> Tokenizer:
    """One token a byte: characters beyond ASCII need several."""
    tokenizer = Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(sorted(ALPHABET))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def fallback_tokenizer() -> Tokenizer:
    """Mixtral's kind: ▁ for a space, bytes with names for characters that the vocabulary lacks, a special token."""
    words = ["▁", *["▁the", "▁sea", "▁was", "house", "a", "b", "c", "é", "the"]]
    names = ["<unk>", "<s>", *(f"<0x{value:02X}>" for value in range(256)), *words]
    tokenizer = Tokenizer(
        models.BPE({name: index for index, name in enumerate(names)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", normalized=False, special=True)])
    return tokenizer


BYTES, FALLBACK = byte_tokenizer(), fallback_tokenizer()
KINDS = {"byte-level": BYTES, "byte fallback": FALLBACK}
both = pytest.mark.parametrize("kind", KINDS)
stops = st.lists(st.text("abé", min_size=1, max_size=4), max_size=3)


def released(text: str, stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(TokenBytes(BYTES), BYTES.encode("x").ids, stops)
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
    stream = TextStream(TokenBytes(BYTES), [], [])
    assert [stream.push(token) for token in ids[:-1]] == ["a", "", "", ""]
    assert stream.finish() == "�"


def answered(tokenizer: Tokenizer, prompt: list[int], answer: list[int]) -> str:
    stream = TextStream(TokenBytes(tokenizer), prompt[-4:], [])
    return "".join([*map(stream.push, answer), stream.finish()])


# Scripts of one to four bytes a character, marks that combine, and emoji of several code points.
SCRIPTS = st.text(
    st.sampled_from("abc é中文தமிழ்አማርኛअ🦊👩‍🚀ا\u0301"), min_size=1, max_size=20
)  # fmt: skip


@both
@given(prompt=SCRIPTS, answer=SCRIPTS)
def test_an_answer_is_what_comes_after_the_prompt_and_nothing_of_it(kind: str, prompt: str, answer: str) -> None:
    tokenizer = KINDS[kind]
    ids, more = tokenizer.encode(prompt).ids, tokenizer.encode(answer).ids
    assert answered(tokenizer, ids, more) == answer
    assert tokenizer.decode([*ids, *more]) == tokenizer.decode(ids) + answer


@both
@given(values=st.binary(min_size=1, max_size=12))
def test_bytes_that_are_no_character_are_replaced(kind: str, values: bytes) -> None:
    tokenizer = KINDS[kind]
    names = {TokenBytes(tokenizer).of(index): index for index in range(tokenizer.get_vocab_size())}
    if kind == "byte fallback":
        names |= {bytes([value]): tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    answer = [names[bytes([value])] for value in values]
    assert answered(tokenizer, tokenizer.encode("the").ids, answer) == values.decode("utf-8", "replace")


def test_a_character_that_began_in_the_prompt_ends_in_the_answer() -> None:
    begun = [FALLBACK.token_to_id(f"<0x{value:02X}>") for value in "文".encode()]
    assert answered(FALLBACK, [FALLBACK.token_to_id("▁the"), *begun[:2]], [begun[2]]) == "文"


def test_tokens_keep_their_space_and_special_ones_their_name() -> None:
    tokens, index = TokenBytes(FALLBACK), FALLBACK.token_to_id
    assert [tokens.of(index(name)) for name in ("▁sea", "house", "<0x41>", "<s>")] == [b" sea", b"house", b"A", b"<s>"]
    assert [tokens.is_byte(index(name)) for name in ("<0x41>", "a")] == [True, False]
    assert answered(FALLBACK, [index("a")], [index("<s>"), index("▁sea")]) == " sea"


@both
@given(parts=st.lists(st.one_of(SCRIPTS, st.binary(min_size=1, max_size=3)), min_size=1, max_size=6))
def test_a_token_begins_within_the_text_where_its_first_byte_is(kind: str, parts: list[str | bytes]) -> None:
    tokenizer, tokens = KINDS[kind], TokenBytes(KINDS[kind])
    single = {tokens.of(index): index for index in range(tokenizer.get_vocab_size())}
    if kind == "byte fallback":
        single |= {bytes([value]): tokenizer.token_to_id(f"<0x{value:02X}>") for value in range(256)}
    answer = []
    for part in parts:
        answer += tokenizer.encode(part).ids if isinstance(part, str) else [single[bytes([value])] for value in part]
    stream, pieces, begun = TextStream(tokens, tokenizer.encode("a").ids, []), [], []
    for token in answer:
        pieces.append(stream.push(token))
        begun.append(stream.begun)
    text = "".join([*pieces, stream.finish()])
    assert begun == sorted(begun)
    for index, at in enumerate(begun):
        assert 0 <= at < len(text)
        # What stands before a token's character is there without this token, too, but for what was not whole.
        before = b"".join(map(tokens.of, answer[:index])).decode("utf-8", "replace")
        assert before[:at].rstrip("\ufffd") == text[:at].rstrip("\ufffd")


@pytest.mark.parametrize(
    ("stops", "expected"),
    [(["<s>"], " sea"), (["a<s>"], " se"), (["<s>b"], " sea"), (["<s>c"], " seabc"), (["sea<s>bc"], " ")],
)
def test_a_stop_string_may_have_special_tokens_that_the_text_has_not(stops: list[str], expected: str) -> None:
    index, stream = FALLBACK.token_to_id, TextStream(TokenBytes(FALLBACK), [], stops)
    pieces = []
    for token in ("▁sea", "<s>", "b", "c"):
        pieces.append(stream.push(index(token)))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    assert "".join(pieces) == expected
    assert stream.stopped == (expected != " seabc")
    assert stream.released == len(expected)

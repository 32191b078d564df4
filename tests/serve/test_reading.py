"""Answers told apart: calls in each family's format, thoughts, and text, however the answer is cut."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumoe.moe.serve.channels import reader_of
from lumoe.moe.serve.reading import THINKING, Manner, Part, Text, Thought
from lumoe.moe.serve.tools import (
    BARE,
    CODER,
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    FORMATS,
    GLM,
    GRANITE,
    HARMONY,
    HERMES,
    HUNYUAN,
    MINIMAX,
    MISTRAL,
    MISTRAL_NAMED,
    Call,
    Format,
    format_of,
)

PARAMETERS = {
    "weather": {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "odd": 7}},
    "now": {},
    "plan": {
        "properties": {
            "steps": {"type": "array"},
            "until": {"anyOf": [{"type": "number"}, {"type": "null"}]},
            "note": {"type": ["string", "null"]},
        }
    },
}
EVERY = [BARE, *{id(form): form for _, form in FORMATS}.values()]


def read(pieces: list[str], manner: Manner) -> list[Part]:
    reader = reader_of(manner)
    found = [part for piece in pieces for part in reader.push(piece)] + reader.finish()
    joined = list[Part]()
    for part in found:
        if joined and isinstance(part, Text | Thought) and type(joined[-1]) is type(part):
            joined[-1] = type(part)(joined[-1].text + part.text)  # type: ignore[union-attr]
        else:
            joined.append(part)
    return joined


def manner(form: Format | None = None, tags: int | None = None, thinking: bool = False) -> Manner:
    header = "" if form and form.channels else None
    named = None if tags is None else THINKING[tags]
    return Manner(form, PARAMETERS, named, thinking, form.around if form else None, header)


def call(name: str, **arguments: object) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False))


ROME = call("weather", city="Rome", days=3)
NOW = call("now")
JSON_ROME = '{"name": "weather", "arguments": {"city": "Rome", "days": 3}}'
CODER_ROME = """<tool_call>
<function=weather>
<parameter=city>
Rome
</parameter>
<parameter=days>
3
</parameter>
</function>
</tool_call>"""
GLM_ROME = """<tool_call>weather
<arg_key>city</arg_key>
<arg_value>Rome</arg_value>
<arg_key>days</arg_key>
<arg_value>3</arg_value>
</tool_call>"""
V3_ROME = (
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n"
    '```json\n{"city": "Rome", "days": 3}\n```'
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
V31_TWO = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Rome", "days": 3}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
MINIMAX_TWO = """<minimax:tool_call>
<invoke name="weather">
<parameter name="city">Rome</parameter>
<parameter name="days">3</parameter>
</invoke>
<invoke name="now">
</invoke>
</minimax:tool_call>"""
MINIMAX_PLAN = """<minimax:tool_call>
<invoke name="plan"><parameter name="steps">["a", {"b": 1}]</parameter><parameter name="until">2.5</parameter>
<parameter name="note">[1]
 </parameter> </minimax:tool_call></parameter></invoke></minimax:tool_call>"""
START = "<|end|><|start|>assistant"
ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|channel|>final<|message|>"
HARMONY_ROME = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome", "days": 3}'
HARMONY_NOW = " to=functions.now<|channel|>commentary json<|message|>{}"

CASES: list[tuple[str, Format, str, list[Part]]] = [
    ("one", HERMES, f"<tool_call>\n{JSON_ROME}\n</tool_call>", [ROME]),
    ("text and two", HERMES,
     f'I look. \n\n<tool_call>{JSON_ROME}</tool_call>\n<tool_call>\n{{"name": "now"}}\n</tool_call>\n',
     [Text("I look."), ROME, NOW]),
    ("text behind", HERMES, f"<tool_call>{JSON_ROME}</tool_call>\nDone.\n", [ROME, Text("\nDone.\n")]),
    ("not closed", HERMES, f"<tool_call>\n{JSON_ROME}", [ROME]),
    ("cut", HERMES, f"So: <tool_call>\n{JSON_ROME[:-9]}", [Text(f"So: <tool_call>\n{JSON_ROME[:-9]}")]),
    ("malformed, then one", HERMES, f"<tool_call>{{name}}</tool_call> <tool_call>{JSON_ROME}</tool_call>",
     [Text("<tool_call>{name}</tool_call>"), ROME]),
    ("the mark within a string", HERMES,
     '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>\\""}}</tool_call>',
     [call("weather", city='</tool_call>"')]),
    ("arguments as a string", HERMES,
     '<tool_call>{"name": "now", "arguments": "{\\"a\\": 1}"}</tool_call>', [call("now", a=1)]),
    ("a name that no tool has", HERMES, '<tool_call>{"name": "else", "arguments": {}}</tool_call>', [call("else")]),
    ("half a pair", HERMES, '<tool_call>{"name": "now", "arguments": {"a": "\\ud83d"}}</tool_call>',
     [Call("now", '{"a": "\\ud83d"}')]),
    ("no number", HERMES, '<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>',
     [Text('<tool_call>{"name": "now", "arguments": {"a": NaN}}</tool_call>')]),
    ("tags", CODER, CODER_ROME, [ROME]),
    ("tags of a function without a schema", CODER, CODER_ROME.replace("=weather", "=else"),
     [call("else", city="Rome", days="3")]),
    ("tags, no argument", CODER, "<tool_call>\n<function=now>\n</function>\n</tool_call>", [NOW]),
    ("tags, no number", CODER, CODER_ROME.replace("3", "three"), [call("weather", city="Rome", days="three")]),
    ("keys and values", GLM, GLM_ROME, [ROME]),
    ("keys and values, none", GLM, "<tool_call>now\n</tool_call>", [NOW]),
    ("sections", DEEPSEEK_V3, V3_ROME, [ROME]),
    ("sections, two", DEEPSEEK_V31, V31_TWO, [ROME, NOW]),
    ("a list", MISTRAL, f'[TOOL_CALLS] [{JSON_ROME}, {{"name": "now", "arguments": {{}}}}]', [ROME, NOW]),
    ("a list, cut", MISTRAL, f"[TOOL_CALLS] [{JSON_ROME}", [Text(f"[TOOL_CALLS] [{JSON_ROME}")]),
    ("a list of something else", MISTRAL, "[TOOL_CALLS] [1, 2] ", [Text("[TOOL_CALLS] [1, 2] ")]),
    ("names", MISTRAL_NAMED,
     'Well[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 3}[TOOL_CALLS]now[CALL_ID]a1[ARGS]{}',
     [Text("Well"), ROME, NOW]),
    ("granite", GRANITE, f"<|tool_call|>[{JSON_ROME}]", [ROME]),
    ("elements", MINIMAX, f"I look.\n\n{MINIMAX_TWO}\n", [Text("I look."), ROME, NOW]),
    ("elements, of types", MINIMAX, MINIMAX_PLAN,
     [call("plan", steps=["a", {"b": 1}], until=2.5, note="[1]\n </parameter> </minimax:tool_call>")]),
    ("elements, nothing", MINIMAX,
     '<minimax:tool_call><invoke name="plan"><parameter name="until">null</parameter>'
     '<parameter name="note">null</parameter></invoke></minimax:tool_call>', [call("plan", until=None, note=None)]),
    ("elements, text behind", MINIMAX, f"{MINIMAX_TWO} Done.", [ROME, NOW, Text(" Done.")]),
    ("elements, not closed", MINIMAX, MINIMAX_TWO[:-21], [ROME, NOW]),
    ("elements, the second cut", MINIMAX, MINIMAX_TWO[: MINIMAX_TWO.find("now")],
     [ROME, Text('\n<invoke name="')]),
    ("elements, the first cut", MINIMAX, MINIMAX_TWO[:70], [Text(MINIMAX_TWO[:70])]),
    ("elements, malformed, then one", MINIMAX,
     f"<minimax:tool_call>so</minimax:tool_call>\n{MINIMAX_TWO}",
     [Text("<minimax:tool_call>so</minimax:tool_call>"), ROME, NOW]),
    ("answer", HUNYUAN, "<answer>\nYes </b>.\n</answer>", [Text("Yes </b>.")]),
    ("answer, cut", HUNYUAN, "<answer>\nYes.\n</ans", [Text("Yes.\n</ans")]),
    ("answer, named", HUNYUAN, "<answer>\n助手：Yes.\n</answer>\n", [Text("Yes.")]),
    ("answer, no marks", HUNYUAN, " Yes</answer>.", [Text(" Yes</answer>.")]),
    ("listed in tags", HUNYUAN,
     f'<answer>\nI look.\n<tool_calls>[{JSON_ROME}, {{"name": "now", "arguments": {{}}}}]</tool_calls>\n</answer>',
     [Text("I look."), ROME, NOW]),
    ("listed in tags, cut", HUNYUAN, f"<tool_calls>[{JSON_ROME}", [Text(f"<tool_calls>[{JSON_ROME}")]),
    ("listed in tags, the mark within a string", HUNYUAN,
     '<tool_calls>[{"name": "weather", "arguments": {"city": "</tool_calls>"}}]</tool_calls>',
     [call("weather", city="</tool_calls>")]),
    ("channels", HARMONY, f"{ANALYSIS}hm, <b\n{START}{FINAL}Yes.\n<|return|>", [Thought("hm, <b\n"), Text("Yes.\n")]),
    ("channels, thoughts and a call", HARMONY,
     f"{ANALYSIS}one{START}{ANALYSIS}two{START}{HARMONY_ROME}<|call|>", [Thought("one\n\ntwo"), ROME]),
    ("channels, told first, two calls", HARMONY,
     f"{ANALYSIS}hm{START}<|channel|>commentary<|message|>I look.{START}{HARMONY_ROME}{START}{HARMONY_NOW}",
     [Thought("hm"), Text("I look."), ROME, NOW]),
    ("channels, no spaces", HARMONY,
     '<|channel|>commentary to=functions.now<|constrain|>json<|message|>{"a": "<|end|> \\""}<|call|>',
     [call("now", a='<|end|> "')]),
    ("channels, a call while it thinks", HARMONY, HARMONY_ROME.replace("commentary", "analysis"), [ROME]),
    ("channels, a tool of its own", HARMONY,
     f"<|channel|>analysis to=python code<|message|>1 + 1{START}{FINAL}2", [Thought("1 + 1"), Text("2")]),
    ("channels, a call that is none", HARMONY,
     f"<|channel|>commentary to=python<|message|>1 + 1{START}{FINAL}2",
     [Text("<|channel|>commentary to=python<|message|>1 + 1\n\n2")]),
    ("channels, a call cut", HARMONY, f"{ANALYSIS}hm{START}{HARMONY_ROME[:-9]}",
     [Thought("hm"), Text(HARMONY_ROME[:-9])]),
    ("channels, a call cut before its arguments", HARMONY, HARMONY_ROME[: HARMONY_ROME.find("{")],
     [Text(HARMONY_ROME[: HARMONY_ROME.find("{")])]),
    ("channels, a call cut, then text", HARMONY, f"{HARMONY_ROME[:-12]}{START}{FINAL}2",
     [Text(f"{HARMONY_ROME[:-12]}\n\n2")]),
    ("channels, a thought cut", HARMONY, f"{ANALYSIS}still thin", [Thought("still thin")]),
    ("channels, a header cut", HARMONY, f"{ANALYSIS}hm{START}<|channel|>fin", [Thought("hm")]),
    ("channels, a text that is not ended", HARMONY, f"{ANALYSIS}hm<|channel|>final<|message|>Yes.",
     [Thought("hm"), Text("Yes.")]),
    ("channels, none", HARMONY, " Yes: to=x.", [Text(" Yes: to=x.")]),
    ("channels, a header that is none", HARMONY, "<|channel|>final Yes, I do", [Text("<|channel|>final Yes, I do")]),
    ("channels, no channel", HARMONY, "<|message|>Yes.<|end|>", [Text("Yes.")]),
    ("bare", BARE,
     f'\n<|python_tag|>{JSON_ROME.replace("arguments", "parameters")}; {{"name": "now", "parameters": {{}}}}',
     [ROME, NOW]),
    ("bare, of no tool", BARE, '{"name": "Bob", "parameters": {}}', [Text('{"name": "Bob", "parameters": {}}')]),
    ("bare, behind text", BARE, f"See: {JSON_ROME}", [Text(f"See: {JSON_ROME}")]),
    ("bare, a list that is none", BARE, "[1, 2] and more;", [Text("[1, 2] and more;")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "form", "text", "parts"), CASES, ids=[case[0] for case in CASES])
def test_calls_are_read_in_each_format_whole_and_letter_by_letter(
    name: str, form: Format, text: str, parts: list[Part]
) -> None:
    assert read([text], manner(form)) == parts
    assert read(list(text), manner(form)) == parts


@pytest.mark.parametrize(("name", "form", "text", "parts"), CASES, ids=[case[0] for case in CASES])
def test_calls_are_read_in_any_two_pieces(name: str, form: Format, text: str, parts: list[Part]) -> None:
    for cut in range(1, len(text)):
        assert read([text[:cut], text[cut:]], manner(form)) == parts, cut


def test_channels_are_read_where_no_tool_is_shown() -> None:
    text = f"{ANALYSIS}hm{START}{HARMONY_ROME}{START}{FINAL}Yes."
    for pieces in ([text], list(text)):
        parts = read(pieces, Manner(header=""))
        assert parts == [Thought("hm"), Text(f"{HARMONY_ROME}\n\nYes.")]


def test_a_message_that_the_prompt_began_goes_on() -> None:
    prompt = f"<|start|>user<|message|>?<|end|><|start|>assistant{FINAL}It is "
    for pieces in ((text := f"so.{START}{FINAL}Yes."), [text]):
        assert read(list(pieces), Manner(header=HARMONY.header(prompt))) == [Text("so.\n\nYes.")]
    assert HARMONY.header("<|start|>user<|message|>?<|end|><|start|>assistant") == ""
    assert HARMONY.header("<|start|>user<|message|>?<|end|>") == ""
    assert HARMONY.header("?") == ""


def test_an_answer_between_marks_may_follow_a_thought() -> None:
    text = "<think>\nhm\n</think>\n<answer>\nYes.\n</answer>"
    for form in (HUNYUAN, None):
        how = Manner(form, PARAMETERS, THINKING[0], False, HUNYUAN.around)
        for cut in range(len(text)):
            assert read([text[:cut], text[cut:]], how) == [Thought("hm"), Text("Yes.")]
    text = f"<think>hm</think>{MINIMAX_TWO}"
    assert read([text[7:]], manner(MINIMAX, 0, thinking=True)) == [Thought("hm"), ROME, NOW]


THOUGHTS = [
    ("<think>\nhm, <b\n</think>\n\nYes.", False, [Thought("hm, <b"), Text("Yes.")]),
    ("\n<think>\n\n</think>\n\nYes.", False, [Text("Yes.")]),
    ("hm\n</think>\nYes.\n", True, [Thought("hm"), Text("Yes.\n")]),
    ("still </thin", True, [Thought("still </thin")]),
    (" No <think>thought</think>.", False, [Text(" No <think>thought</think>.")]),
    ("<thi", False, [Text("<thi")]),
    ("  ", False, [Text("  ")]),
]


@pytest.mark.parametrize(("text", "thinking", "parts"), THOUGHTS)
def test_a_thought_stands_before_the_answer(text: str, thinking: bool, parts: list[Part]) -> None:
    assert read([text], manner(tags=0, thinking=thinking)) == parts
    assert read(list(text), manner(tags=0, thinking=thinking)) == parts


def test_a_call_may_follow_a_thought() -> None:
    text = f"<think>{JSON_ROME}</think>\n<tool_call>{JSON_ROME}</tool_call>"
    assert read(list(text), manner(HERMES, 0)) == [Thought(JSON_ROME), ROME]


SCRAPS = sorted(
    {name for form in EVERY for name in form.names}
    | {part for _, _, text, _ in CASES for part in text.split("</")}
    | {
        JSON_ROME,
        "<think>",
        "</think>",
        "\\",
        '"',
        "{",
        "}",
        "[",
        "]",
        " ",
        "\n",
        ";",
        "name",
        "é",
        "<function=",
        "<answer>",
        "</answer>",
        "助手：",
        " to=functions.now",
        "assistant",
        "final",
        "commentary",
        "\ud83d",
    }
)


@given(
    st.sampled_from(EVERY),
    st.sampled_from([None, 0, 1]),
    st.booleans(),
    st.lists(st.sampled_from(SCRAPS) | st.text(max_size=3), max_size=12),
    st.data(),
)
def test_any_text_is_read_alike_however_it_is_cut(
    form: Format, tags: int | None, thinking: bool, scraps: list[str], data: st.DataObject
) -> None:
    text = "".join(scraps)
    how = manner(form, tags, thinking and tags is not None)
    cuts = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=8))})
    assert read([text[begin:end] for begin, end in pairwise(cuts)], how) == read([text], how)


@given(st.text())
def test_without_calls_and_thoughts_nothing_is_changed(text: str) -> None:
    assert read(list(text), manner()) == ([Text(text)] if text else [])


@given(st.sampled_from(EVERY), st.dictionaries(st.text("ab</>", max_size=5), st.text(max_size=5) | st.integers()))
def test_what_a_forced_call_begins_with_is_how_a_call_is_read(form: Format, arguments: dict[str, object]) -> None:
    if form in (CODER, GLM, MINIMAX):
        return  # arguments are no JSON there
    closing = {
        MISTRAL: "}]",
        GRANITE: "}]",
        HUNYUAN: "}]",
        HARMONY: "",
        MISTRAL_NAMED: "",
        DEEPSEEK_V3: "\n```",
        DEEPSEEK_V31: "",
    }.get(form, "}")
    text = form.opening("weather") + " " + json.dumps(arguments) + closing
    assert read([text], manner(form)) == [call("weather", **arguments)]


@pytest.mark.parametrize("form", EVERY, ids=lambda form: next(iter(form.marks)))
def test_what_a_schema_of_calls_allows_is_read_as_calls(form: Format) -> None:
    parameters = {"weather": {"properties": {"city": {"type": "string"}}}, "now": {}}
    for only in (None, "now"):
        schema = form.schema(parameters, only)
        if schema is None:
            assert form.key is None
            continue
        if form is HARMONY:
            jsonschema.validate({}, schema)
            assert read([form.before_json(parameters, only) + "{}"], manner(form)) == [NOW]
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate([], schema)
            continue
        value: Any = {"name": "now", form.key: {}}
        value = [value] if form.listed else value
        jsonschema.validate(value, schema)
        assert read([("" if form is BARE else form.marks[0]) + json.dumps(value)], manner(form)) == [NOW]
        other: Any = {"name": "weather" if only else "else", form.key: {}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate([other] if form.listed else other, schema)


def test_deep_nesting_is_text() -> None:
    for text in ("<tool_call>" + "[" * 5000 + "</tool_call>", "[TOOL_CALLS]" + '{"a":' * 5000):
        for form in (HERMES, MISTRAL):
            assert read([text], manner(form)) == [Text(text)]


def test_the_template_says_which_format_or_else_the_vocabulary() -> None:
    assert format_of("{{ '[TOOL_CALLS]' }}", {"<tool_call>": 1}) is MISTRAL
    assert format_of("<tool_call> <function=", {}) is CODER
    assert format_of("<tool_call> <arg_key>", {}) is GLM
    assert format_of("<tool_call>", {"[TOOL_CALLS]": 1}) is HERMES
    assert format_of("tools", {"<|tool_call|>": 1}) is GRANITE
    assert format_of("<|start|> <|channel|> <|message|>", {}) is HARMONY
    assert format_of("<minimax:tool_call>", {"<tool_call>": 1}) is MINIMAX
    assert format_of("<tool_calls>", {}) is HUNYUAN
    assert format_of("<|extra_0|> <|extra_4|>", {}) is HUNYUAN
    assert format_of("tools", {}) is BARE


def test_mistral_names_calls_by_nine_letters() -> None:
    assert len(MISTRAL.new_id()) == 9
    assert MISTRAL.id_of("abcdefgh1") == "abcdefgh1"
    assert MISTRAL.id_of("call_a-b") == "000callab"
    assert MISTRAL.id_of("call_0123456789") == "123456789"
    assert HERMES.id_of("x") == "x"

"""gpt-oss's messages in channels through the server: what ends an answer, what a client gets and may send back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from running import Running
from spoken import byte_level
from told import cue, telling

from lumoe.moe.checkpoint.chat_template import ChatTokenizer
from lumoe.moe.serve.channels import reader_of
from lumoe.moe.serve.constraints import Freedom
from lumoe.moe.serve.conversation import Conversation, Message, Tool
from lumoe.moe.serve.detokenizer import TextStream
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.serve.reading import Text, Thought
from lumoe.moe.serve.tools import HARMONY, Call

MARKS = sorted(HARMONY.names)
# What gpt-oss's own template does with turns of the assistant: one call, a thought or a text, results by the last call.
TEMPLATE = """\
{%- if tools %}{% for t in tools %}{{ "// " + t.function.description + t.function.name }}{% endfor %}{% endif %}
{%- set last = namespace(name=none) %}
{%- for m in messages %}
{%- if m.role == "assistant" and "tool_calls" in m %}
{%- if m.content and m.thinking %}{{ raise_exception("both") }}{% endif %}
{%- if m.thinking %}{{ "<|start|>assistant<|channel|>analysis<|message|>" + m.thinking + "<|end|>" }}{% endif %}
{%- set call = m.tool_calls[0].function %}{% set last.name = call.name %}
{{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" }}
{{- call.arguments|tojson + "<|call|>" }}
{%- elif m.role == "assistant" %}{{ "<|start|>assistant<|channel|>final<|message|>" + m.content }}
{{- "<|end|>" if add_generation_prompt or not loop.last else "<|return|>" }}
{%- elif m.role == "tool" %}
{%- if last.name is none %}{{ raise_exception("no call") }}{% endif %}
{{- "<|start|>functions." + last.name + " to=assistant<|channel|>commentary<|message|>" + m.content|tojson }}<|end|>
{%- else %}{{ "<|start|>" + m.role + "<|message|>" + m.content + "<|end|>" }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "the time"}}
# A cue is what the model goes by; its own template has it in the middle.
CUED = "{% if tools %}tools {% endif %}{{ messages[-1].content }}"


def called(number: int, name: str, **arguments: str) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    ids = tokenizer.convert_tokens_to_ids(["<|end|>"])
    known = ChatTokenizer(tokenizer.backend_tokenizer, tokenizer.eos_token_id, {}, TEMPLATE)
    return Prompts(known, len(tokenizer), 4096, frozenset([tokenizer.eos_token_id, *ids]))


def laid_out(prompts: Prompts, *messages: dict[str, Any], **more: Any) -> str:
    conversation = Conversation([Message.model_validate(message) for message in messages], **more)
    return prompts.decode(prompts.laid_out(conversation).ids)


def test_the_end_of_a_message_does_not_end_an_answer(prompts: Prompts) -> None:
    names = {prompts.backend.id_to_token(token) for token in prompts.end_tokens}
    assert {"<|call|>", "<|return|>"} < names
    assert len(names) == 3, "and the tokenizer's own"
    assert "<|end|>" not in names


def test_marks_are_shown_to_the_reader_whether_there_are_tools_or_none(prompts: Prompts) -> None:
    answer = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
        '<|constrain|>json<|message|>{"city": "Rome"}'
    )
    raw = '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}'
    for tools, last in (([Tool(**WEATHER)], Call("weather", '{"city": "Rome"}')), ([], Text(raw))):
        conversation = Conversation([Message(role="user", content="?")], tools)
        manner = prompts.laid_out(conversation).manner
        stream, reader = TextStream(prompts.shown_by(manner), (), ()), reader_of(manner)
        parts = [part for token in prompts.ids(answer, special=False) for part in reader.push(stream.push(token))]
        parts += reader.push(stream.finish()) + reader.finish()
        assert "".join(part.text for part in parts if isinstance(part, Thought)) == "hm"
        assert [part for part in parts if isinstance(part, Call)] == ([last] if tools else [])
        assert "".join(part.text for part in parts if isinstance(part, Text)) == ("" if tools else raw)


def test_what_was_answered_goes_back_to_the_template(prompts: Prompts) -> None:
    user = {"role": "user", "content": "?"}
    two = [called(1, "weather", city="Rome"), called(2, "now")]
    before = {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": two}
    results = [
        {"role": "tool", "tool_call_id": f"c{number}", "content": text} for number, text in ((2, "9"), (1, "rain"))
    ]
    rendered = (
        "<|start|>user<|message|>?<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>hm\n\nI look.<|end|>"
        '<|start|>assistant to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome"}<|call|>'
        '<|start|>functions.weather to=assistant<|channel|>commentary<|message|>"rain"<|end|>'
        "<|start|>assistant to=functions.now<|channel|>commentary json<|message|>{}<|call|>"
        '<|start|>functions.now to=assistant<|channel|>commentary<|message|>"9"<|end|><|start|>assistant'
    )
    assert laid_out(prompts, user, before, *results) == rendered
    # By its other name, and results that name no call: they are in the order of the calls.
    before["thinking"] = before.pop("reasoning_content")
    unnamed = [{"role": "tool", "content": text} for text in ("rain", "9")]
    assert laid_out(prompts, user, before, *unnamed) == rendered
    # A tool without a description.
    assert laid_out(prompts, user, tools=[Tool(**WEATHER)]).startswith("// weather<|start|>user")


def test_an_answer_that_goes_on_is_of_its_channel(prompts: Prompts) -> None:
    messages = [Message(role="user", content="?"), Message(role="assistant", content="It is")]
    prompt = prompts.laid_out(Conversation(messages, continued=True))
    assert prompts.decode(prompt.ids).endswith("<|channel|>final<|message|>It is")
    assert prompt.manner.header == "<|channel|>final<|message|>"
    assert prompt.freedom == Freedom()
    reader = reader_of(prompt.manner)
    assert reader.push(" so.") + reader.finish() == [Text(" so.")]


TOLD = {
    "rome": '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Rome"}<|call|> and more',
    "sunny": "<|channel|>final<|message|>It is sunny.<|return|> and so on",
}


def client_of(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(running: Running, name: str, **more: Any) -> dict[str, Any]:
    asked = {"model": running.name, "temperature": 0, "tools": [WEATHER], **more}
    return {**asked, "messages": [{"role": "user", "content": cue(name)}]}


@pytest.mark.parametrize("name", TOLD)
def test_answers_end_with_a_call_or_a_return(tmp_path: Path, name: str) -> None:
    with telling(tmp_path, {name: TOLD[name]}, template=CUED, special=MARKS) as running:
        client = client_of(running)
        for stream in (False, True):
            answer = client.chat.completions.create(**ask(running, name), stream=stream, max_tokens=200)
            choices = [chunk.choices[0] for chunk in answer] if stream else [answer.choices[0]]
            said = [choice.delta if stream else choice.message for choice in choices]
            calls = [call.function for one in said for call in one.tool_calls or ()]
            text = "".join(one.content or "" for one in said)
            if name == "rome":
                assert (text, choices[-1].finish_reason) == ("", "tool_calls")
                assert calls[0].name == "weather"
                assert json.loads("".join(call.arguments for call in calls)) == {"city": "Rome"}
            else:
                assert (text, calls, choices[-1].finish_reason) == ("It is sunny.", [], "stop")
        plain = client.chat.completions.create(**ask(running, name, tool_choice="none"), max_tokens=200).choices[0]
        assert (plain.message.tool_calls, plain.finish_reason) == (None, "stop")
        assert plain.message.content == (TOLD[name].partition("<|call|>")[0] if name == "rome" else "It is sunny.")


def test_a_call_that_is_required_is_held_to_the_arguments(tmp_path: Path) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    begun = {"<|message|>": '{"city": "Rome"}'}
    with telling(tmp_path, {}, template=CUED, special=MARKS, begun=begun) as running:
        client = client_of(running)
        for tools, choice in (([WEATHER], "required"), ([WEATHER, NOW], named)):
            answer = client.chat.completions.create(**ask(running, "x", tools=tools, tool_choice=choice)).choices[0]
            assert (answer.finish_reason, answer.message.content) == ("tool_calls", None)
            (call,) = answer.message.tool_calls or ()
            assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
            only = None if choice == "required" else "weather"
            turns, shown = [Message(role="user", content="?")], [Tool(**tool) for tool in tools]
            laid = running.server.prompts.laid_out(Conversation(turns, shown, True, only))
            assert laid.begun == "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>"
            assert laid.call is not None
            assert json.loads(laid.call.text) == WEATHER["function"]["parameters"]
        # Of several functions the name comes first, and nothing holds the answer to it.
        laid = running.server.prompts.laid_out(Conversation(turns, [Tool(**WEATHER), Tool(**NOW)], True))
        assert (laid.begun, laid.call) == ("<|channel|>commentary to=functions", None)


def test_a_form_is_of_the_final_message(tmp_path: Path) -> None:
    answer = '<|channel|>final<|message|>{"city": "Rome"}'
    with telling(tmp_path, {"rome": answer}, template=CUED, special=MARKS) as running:
        client = client_of(running)
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER["function"]["parameters"]}}
        asked = ask(running, "rome", tools=openai.NOT_GIVEN, response_format=form)
        choice = client.chat.completions.create(**asked, max_tokens=100).choices[0]
        assert (json.loads(choice.message.content or ""), choice.finish_reason) == ({"city": "Rome"}, "stop")
        # With tools too, nothing tells a call from an answer of the form.
        with pytest.raises(openai.BadRequestError, match="cannot be told from an answer of a form"):
            client.chat.completions.create(**ask(running, "rome", response_format=form))

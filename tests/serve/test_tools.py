"""Tools as the openai package offers them: a model is told what to call, and its calls come back whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from running import Running
from spoken import KINDS
from told import TEMPLATE, cue, telling

from lumoe.moe.serve.conversation import Message, chosen
from lumoe.moe.serve.errors import ApiError

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "the weather of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ANSWERS = {
    "rome": 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    "two": '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>'
    '\n\n<tool_call>{"arguments": {"city":  "Bari"}, "name": "weather"}</tool_call>',
    "broken": "Well: <tool_call> {no JSON} </tool_call>",
    "sunny": "It is sunny there.",
    "think": "<think>\nlet me see\n</think>\n\nIt rains.",
}


@pytest.fixture(scope="module", params=KINDS)
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with telling(tmp_path_factory.mktemp("told"), ANSWERS, request.param) as running:
        yield running


@pytest.fixture
def client(told: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{told.url}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(running: Running, name: str, **more: Any) -> dict[str, Any]:
    asked = {"model": running.name, "temperature": 0, "tools": [WEATHER], **more}
    return {**asked, "messages": [*asked.get("messages", ()), {"role": "user", "content": cue(name)}]}


def test_a_call_is_answered_and_the_conversation_goes_on(client: openai.OpenAI, told: Running) -> None:
    request = ask(told, "rome")
    choice = client.chat.completions.create(**request).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I look.")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
    result = {"role": "tool", "tool_call_id": call.id, "content": cue("sunny")}
    whole = choice.message.model_dump()
    # Other clients add fields of their own, and leave them empty.
    more = {**whole, "audio": None, "annotations": [], "provider_specific_fields": {}, "reasoning": ""}
    for message in (choice.message, whole, more):
        answer = client.chat.completions.create(**{**request, "messages": [*request["messages"], message, result]})
        assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (ANSWERS["sunny"], "stop")
        assert answer.choices[0].message.tool_calls is None


def test_a_stream_has_the_name_first_and_then_the_arguments(client: openai.OpenAI, told: Running) -> None:
    for name in ("rome", "two"):
        whole = client.chat.completions.create(**ask(told, name)).choices[0]
        calls: dict[int, dict[str, str]] = {}
        chunks = list(client.chat.completions.create(**ask(told, name), stream=True))
        for call in (call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()):
            if call.index in calls:
                assert (call.id, call.function.name) == (None, None)
                calls[call.index]["arguments"] += call.function.arguments
            else:
                assert call.type == "function"
                assert call.id
                calls[call.index] = {"name": call.function.name, "arguments": call.function.arguments}
        assert [calls[index] for index in range(len(calls))] == [
            {"name": call.function.name, "arguments": call.function.arguments}
            for call in whole.message.tool_calls or ()
        ]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == (whole.message.content or "")
        assert [chunk.choices[0].finish_reason for chunk in chunks][-2:] == [None, "tool_calls"]
    # The package's own way of gathering a stream agrees.
    with client.chat.completions.stream(**ask(told, "two")) as stream:
        gathered = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [call.function.arguments for call in gathered] == ['{"city": "Oslo"}', '{"city": "Bari"}']


@pytest.mark.parametrize("stream", [False, True])
def test_without_parallel_calls_the_first_one_ends_the_answer(
    client: openai.OpenAI, told: Running, stream: bool
) -> None:
    for parallel, names in ((True, ["Oslo", "Bari"]), (False, ["Oslo"])):
        answer = client.chat.completions.create(**ask(told, "two"), parallel_tool_calls=parallel, stream=stream)
        if stream:
            calls = [call for chunk in answer for call in chunk.choices[0].delta.tool_calls or () if not call.id]
        else:
            assert answer.choices[0].message.content is None
            assert answer.choices[0].finish_reason == "tool_calls"
            calls = answer.choices[0].message.tool_calls
        assert [json.loads(call.function.arguments)["city"] for call in calls] == names


def test_what_is_no_call_is_text(client: openai.OpenAI, told: Running) -> None:
    choice = client.chat.completions.create(**ask(told, "broken")).choices[0]
    assert (choice.message.content, choice.finish_reason) == (ANSWERS["broken"], "stop")
    cut = client.chat.completions.create(**ask(told, "rome"), max_tokens=10).choices[0]
    assert cut.finish_reason == "length"
    assert ANSWERS["rome"].startswith(cut.message.content or "?")


@pytest.mark.parametrize("choice", ["none", None])
def test_without_tools_the_answer_is_as_it_is_written(client: openai.OpenAI, told: Running, choice: str | None) -> None:
    more: dict[str, Any] = {"tool_choice": choice} if choice else {"tools": openai.NOT_GIVEN}
    message = client.chat.completions.create(**ask(told, "rome", **more)).choices[0].message
    assert (message.content, message.tool_calls) == (ANSWERS["rome"], None)
    # The model is not shown tools that it may not call.
    asked = ask(told, "sunny", **more)
    used = client.chat.completions.create(**asked).usage
    with_tools = client.chat.completions.create(**ask(told, "sunny")).usage
    assert used is not None
    assert with_tools is not None
    assert used.prompt_tokens < with_tools.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_apart_from_the_answer(client: openai.OpenAI, told: Running, stream: bool) -> None:
    template = told.server.prompts._tokenizer.chat_template
    told.server.prompts._tokenizer.chat_template = template + "{# </think> #}"
    told.server.prompts.__dict__.pop("tags", None)
    try:
        answer = client.chat.completions.create(**ask(told, "think"), stream=stream)
        if stream:
            deltas = [chunk.choices[0].delta for chunk in answer]
            thought = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
            text = "".join(delta.content or "" for delta in deltas)
        else:
            message = answer.choices[0].message
            thought, text = message.reasoning_content, message.content
            again = [message, {"role": "user", "content": cue("sunny")}]
            assert client.chat.completions.create(**{**ask(told, "think"), "messages": again}).choices
        assert (thought, text) == ("let me see", "It rains.")
    finally:
        told.server.prompts._tokenizer.chat_template = template
        told.server.prompts.__dict__.pop("tags", None)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "some"}, "tool_choice"),
        ({"functions": [WEATHER["function"]]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"bos_token": "x"}}}, "chat_template_kwargs"),
        ({"extra_body": {"chat_template_kwargs": {"messages": 3}}}, "chat_template_kwargs"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": None, "audio": {"id": "x"}}]}, "messages"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    client: openai.OpenAI, told: Running, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask(told, "sunny", **change))
    assert caught.value.param == param
    assert caught.value.body["message"]  # type: ignore[index]


def test_what_changes_nothing_is_accepted(client: openai.OpenAI, told: Running) -> None:
    harmless = {
        "service_tier": "auto", "reasoning_effort": "low", "parallel_tool_calls": True, "prompt_cache_key": "k",
        "safety_identifier": "s", "verbosity": "low", "prediction": {"type": "content", "content": "x"},
        "modalities": ["text"], "store": True, "metadata": {"a": "b"}, "user": "u", "tools": openai.NOT_GIVEN,
    }  # fmt: skip
    answer = client.chat.completions.create(**ask(told, "sunny", **harmless))
    assert answer.choices[0].message.content == ANSWERS["sunny"]


def test_templates_see_arguments_as_objects_and_names_of_calls(client: openai.OpenAI, told: Running) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    before = [
        {"role": "developer", "content": "be brief"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "rain"}]},
        {"role": "assistant", "function_call": {"name": "weather", "arguments": "[]"}},
        {"role": "function", "name": "weather", "content": "snow"},
    ]
    seen = list[Any]()
    tokenizer = told.server.prompts._tokenizer
    render = tokenizer.apply_chat_template

    def spied(turns: Any, **options: Any) -> Any:
        seen.append(turns)
        return render([turn for turn in turns if not turn.get("tool_calls")], **options)

    tokenizer.apply_chat_template = spied
    try:
        assert client.chat.completions.create(**ask(told, "sunny", messages=before)).choices
    finally:
        del tokenizer.apply_chat_template
    turns = seen[0]
    assert turns[0] == {"role": "system", "content": "be brief"}
    assert turns[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert turns[2] == {"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "c1"}
    assert turns[3]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "[]"}
    assert turns[3]["tool_calls"][0]["id"].startswith("call_")
    assert turns[4] == {"role": "tool", "content": "snow", "name": "weather"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("text", "special"),
    [
        ('[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]', ["[TOOL_CALLS]"]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', ["[TOOL_CALLS]", "[ARGS]"]),
        ('<|tool_call|>[{"name": "weather", "arguments": {"city": "Rome"}}]', ["<|tool_call|>"]),
        ("<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
         ["<tool_call>", "</tool_call>"]),
        ('<minimax:tool_call>\n<invoke name="weather">\n<parameter name="city">Rome</parameter>\n</invoke>\n'
         "</minimax:tool_call>", ["<minimax:tool_call>", "</minimax:tool_call>"]),
        ('<tool_calls>[{"name": "weather", "arguments": {"city": "Rome"}}]</tool_calls>',
         ["<tool_calls>", "</tool_calls>"]),
        ('{"name": "weather", "parameters": {"city": "Rome"}}', []),
    ],
    ids=["Mistral", "Mistral with names", "Granite", "Qwen3-Coder", "MiniMax-M2", "Hunyuan", "JSON"],
)  # fmt: skip
def test_marks_that_are_special_tokens_are_read(tmp_path: Path, kind: str, text: str, special: list[str]) -> None:
    template = "{% if tools %}tools {% endif %}{{ messages[-1].content }}{# <function= #}"
    if "<tool_call>" in special:
        template += "{# <tool_call> #}"
    with telling(tmp_path, {"rome": text}, kind, template, special) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)
        choice = client.chat.completions.create(**ask(running, "rome")).choices[0]
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        (call,) = choice.message.tool_calls or ()
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
        assert len(call.id) == (9 if "[TOOL_CALLS]" in special else 29)
        # Where no call is read, special tokens are no text, as everywhere.
        plain = client.chat.completions.create(**ask(running, "rome", tool_choice="none")).choices[0].message.content
        for mark in special:
            text = text.replace(mark, "")
        assert plain == text


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_between_marks_is_told_without_them(tmp_path: Path, kind: str) -> None:
    text = "<think>\nlet me see\n</think>\n<answer>\nIt rains.\n</answer>"
    template = "{% if tools %}<tool_calls> {% endif %}{{ messages[-1].content }}{# </think> #}"
    with telling(tmp_path, {"rain": text}, kind, template) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)
        for choice in ("auto", "none"):
            answer = client.chat.completions.create(**ask(running, "rain", tool_choice=choice)).choices[0]
            thought = getattr(answer.message, "reasoning_content", None)
            assert (thought, answer.message.content, answer.finish_reason) == ("let me see", "It rains.", "stop")
            chunks = client.chat.completions.create(**ask(running, "rain", tool_choice=choice), stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It rains."


FUNCTION = {"type": "function", "function": {"name": "weather"}}


@pytest.mark.parametrize(
    ("choice", "rest"),
    [
        ("required", ' "weather", "arguments": {"city": "Rome"}}'),
        (FUNCTION, ' {"city": "Rome"}}'),
    ],
)
@pytest.mark.parametrize("thinks", [False, True])
def test_a_call_that_is_required_is_begun(tmp_path: Path, choice: Any, rest: str, thinks: bool) -> None:
    template = TEMPLATE + ("<think>\n" if thinks else "")
    with telling(tmp_path, {}, template=template, begun={'":': rest}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)
        for stream in (False, True):
            answer = client.chat.completions.create(**ask(running, "x", tool_choice=choice), stream=stream)
            if stream:
                parts = [chunk.choices[0].delta.tool_calls for chunk in answer]
                calls = [call.function for part in parts for call in part or ()]
                name, arguments = calls[0].name, "".join(call.arguments for call in calls)
            else:
                assert answer.choices[0].finish_reason == "tool_calls"
                called = answer.choices[0].message.tool_calls[0].function
                name, arguments = called.name, called.arguments
            assert (name, json.loads(arguments)) == ("weather", {"city": "Rome"})


def test_templates_that_want_arguments_as_text_get_them(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ 'f ' + c.function.arguments }}{% endfor %}"
    with telling(tmp_path, {}, template=template + "{% endfor %}") as running:
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a":  "é"}'}}
        conversation = chosen(None, None, [Message(role="assistant", tool_calls=[call])], None)  # type: ignore[list-item]
        prompts = running.server.prompts
        assert prompts.backend.decode(prompts.encode_chat(conversation).ids) == 'f {"a": "é"}'
        tokenizer = prompts._tokenizer
        tokenizer.chat_template = template.replace("arguments", "arguments + 1") + "{% endfor %}"
        with pytest.raises(ApiError, match="refused the messages"):
            prompts.encode_chat(conversation)


def test_a_template_without_a_place_for_tools_is_named(running: Running) -> None:
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="no place for tools") as caught:
        client.chat.completions.create(**ask(running, "sunny"))
    assert caught.value.param == "tools"

"""The responses interface as the openai package meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from running import Running
from told import TEMPLATE, cue, telling

from lumoe.moe.serve.generation import Failure

WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "the weather of a place",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": True,
}
ANSWERS = {
    "rome": '<think>hm, hm</think>I look.\n<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>',
    "two": '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>'
    '\n\n<tool_call>{"arguments": {"city":  "Bari"}, "name": "weather"}</tool_call>',
    "sunny": "It is sunny there.",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with telling(tmp_path_factory.mktemp("told"), ANSWERS, template=TEMPLATE + "{# </think> #}") as running:
        yield running


@pytest.fixture(scope="module")
def client(told: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{told.url}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(running: Running, name: str, **more: Any) -> dict[str, Any]:
    return {"model": running.name, "temperature": 0, "input": cue(name), **more}


def test_a_response(client: openai.OpenAI, told: Running) -> None:
    answer = client.responses.create(**ask(told, "sunny", instructions="be brief", store=True, metadata={"a": "b"}))
    assert (answer.output_text, answer.status, answer.store) == (ANSWERS["sunny"], "completed", False)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.metadata == {"a": "b"}
    parts = [{"role": "user", "content": [{"type": "input_text", "text": cue("sunny")}]}]
    again = client.responses.create(**ask(told, "", input=parts, instructions="be brief"))
    assert again.output_text == ANSWERS["sunny"]
    assert again.usage is not None
    assert again.usage.input_tokens == answer.usage.input_tokens
    cut = client.responses.create(**ask(told, "sunny", max_output_tokens=2))
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"
    assert ANSWERS["sunny"].startswith(cut.output_text)


def test_tools_are_called_and_the_items_go_on(client: openai.OpenAI, told: Running) -> None:
    answer = client.responses.create(**ask(told, "rome", tools=[WEATHER]))
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    call = answer.output[-1]
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments), answer.output_text) == ("weather", {"city": "Rome"}, "I look.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": cue("sunny")}
    first = {"role": "user", "content": cue("rome")}
    for items in (answer.output, [item.model_dump() for item in answer.output]):
        again = client.responses.create(**ask(told, "", input=[first, *items, result], tools=[WEATHER]))
        assert again.output_text == ANSWERS["sunny"]
    one = client.responses.create(**ask(told, "two", tools=[WEATHER], parallel_tool_calls=False))
    assert [item.type for item in one.output] == ["function_call"]
    none = client.responses.create(**ask(told, "two", tools=[WEATHER], tool_choice="none"))
    assert none.output_text == ANSWERS["two"]


@pytest.mark.parametrize("name", ["rome", "two", "sunny"])
def test_a_stream_makes_the_same_items(client: openai.OpenAI, told: Running, name: str) -> None:
    whole = client.responses.create(**ask(told, name, tools=[WEATHER]))
    events = list(client.responses.create(**ask(told, name, tools=[WEATHER]), stream=True))
    assert [event.type for event in events][:2] == ["response.created", "response.in_progress"]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"

    def shown(items: Any) -> Any:
        ids = {"id": None, "call_id": None}
        return [{**item.model_dump(exclude_none=True), **ids} for item in items]

    assert shown(last.response.output) == shown(whole.output)
    assert last.response.usage.total_tokens == whole.usage.total_tokens
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    arguments = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert arguments == [item.arguments for item in whole.output if item.type == "function_call"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert shown(done) == shown(whole.output)
    # The package gathers the items by itself from the smaller events.
    with client.responses.stream(**ask(told, name, tools=[WEATHER])) as stream:
        final = stream.get_final_response()
    assert final.output_text == whole.output_text


@pytest.mark.parametrize(
    ("choice", "rest"),
    [
        ("required", ' "weather", "arguments": {"city": "Rome"}}'),
        ({"type": "function", "name": "weather"}, ' {"city": "Rome"}}'),
    ],
)
def test_a_tool_must_be_called(tmp_path: Path, choice: Any, rest: str) -> None:
    with telling(tmp_path, {}, begun={'":': rest}) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
        (call,) = client.responses.create(**ask(running, "x", tools=[WEATHER], tool_choice=choice)).output
        assert call.type == "function_call"
        assert json.loads(call.arguments) == {"city": "Rome"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "gpt-5"}, "model"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"max_output_tokens": 10**9}, "max_tokens"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": []}, "input"),
        ({"extra_body": {"file": "/etc/passwd"}}, "file"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(
    client: openai.OpenAI, told: Running, change: dict[str, Any], param: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client.responses.create(**ask(told, "sunny", **change))
    assert caught.value.param == param


def test_a_failure_is_an_event_of_the_stream(
    client: openai.OpenAI, told: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told.server.active, "submit", lambda found: [one.sink(Failure("no more")) for one in found])
    events = list(client.responses.create(**ask(told, "sunny"), stream=True))
    assert events[-1].type == "response.failed"
    assert events[-1].response.error is not None
    assert events[-1].response.error.message == "no more"
    with pytest.raises(openai.InternalServerError, match="no more"):
        client.responses.create(**ask(told, "sunny"))


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"model": "a\\ud83d"}', b"[" * 5000, b'{"input": ' + b'{"a":' * 500])
def test_bodies_that_are_none_are_refused(told: Running, raw: bytes) -> None:
    with told.client() as client:
        answer = client.post("/v1/responses", content=raw, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (400, "invalid_request_error")

"""The server as the anthropic package meets it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
from running import Running, serving
from told import TEMPLATE, cue, telling

from lumoe.moe.serve.generation import Failure
from lumoe.moe.serve.run import Setup

WEATHER = {
    "name": "weather",
    "description": "the weather of a place",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    "cache_control": {"type": "ephemeral"},
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
def client(told: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=told.url, api_key="unused", max_retries=0, timeout=60) as client:
        yield client


def ask(running: Running, name: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": cue(name)}]
    # The package's newer versions have no parameter for the temperature.
    body = {"temperature": 0, "top_k": 5, **more.pop("extra_body", {})}
    return {"model": running.name, "max_tokens": 200, "messages": messages, "extra_body": body, **more}


def test_a_message(client: anthropic.Anthropic, told: Running) -> None:
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(**ask(told, "sunny", system=system, metadata={"user_id": None}))
    assert [block.model_dump(exclude_none=True) for block in answer.content] == [
        {"type": "text", "text": ANSWERS["sunny"]}
    ]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("end_turn", None, "assistant")
    assert client.messages.count_tokens(
        model=told.name, messages=[{"role": "user", "content": cue("sunny")}], system="be brief"
    ).input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)  # fmt: skip
    assert answer.usage.output_tokens > 0
    cut = client.messages.create(**ask(told, "sunny", max_tokens=2))
    assert cut.stop_reason == "max_tokens"
    stopped = client.messages.create(**ask(told, "sunny", stop_sequences=["never", " sun"]))
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", " sun")
    assert stopped.content[0].text == "It is"  # type: ignore[union-attr]


def test_tools_are_called_and_answered(client: anthropic.Anthropic, told: Running) -> None:
    request = ask(told, "rome", tools=[WEATHER])
    answer = client.messages.create(**request)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use"]
    assert answer.stop_reason == "tool_use"
    thought, text, use = answer.content
    assert thought.type == "thinking"
    assert text.type == "text"
    assert use.type == "tool_use"
    assert (thought.thinking, text.text, use.name, use.input) == ("hm, hm", "I look.", "weather", {"city": "Rome"})
    for content in (cue("sunny"), [{"type": "text", "text": cue("sunny")}]):
        result = {"type": "tool_result", "tool_use_id": use.id, "content": content}
        after = [*request["messages"], {"role": "assistant", "content": answer.content}]
        again = client.messages.create(**{**request, "messages": [*after, {"role": "user", "content": [result]}]})
        assert [block.type for block in again.content] == ["text"]
        assert again.content[0].text == ANSWERS["sunny"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["rome", "two", "sunny"])
def test_a_stream_is_the_same_message(client: anthropic.Anthropic, told: Running, name: str) -> None:
    request = ask(told, name, tools=[WEATHER])
    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"

    def shown(message: Any) -> Any:
        return [{**block.model_dump(exclude_none=True), "id": None} for block in message.content]

    assert shown(final) == shown(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    raw = [event.type for event in client.messages.create(**request, stream=True)]
    assert raw.count("content_block_start") == raw.count("content_block_stop") == len(whole.content)


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"type": "auto"}, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, 1),
        ({"type": "none"}, 0),
    ],
)
def test_which_tools_may_be_called(client: anthropic.Anthropic, told: Running, choice: Any, count: int) -> None:
    answer = client.messages.create(**ask(told, "two", tools=[WEATHER], tool_choice=choice))
    assert sum(block.type == "tool_use" for block in answer.content) == count


@pytest.mark.parametrize(
    ("choice", "rest"),
    [
        ({"type": "any"}, ' "weather", "arguments": {"city": "Rome"}}'),
        ({"type": "tool", "name": "weather"}, ' {"city": "Rome"}}'),
    ],
)
def test_a_tool_must_be_called(tmp_path: Path, choice: Any, rest: str) -> None:
    with telling(tmp_path, {}, begun={'":': rest}) as running:
        client = anthropic.Anthropic(base_url=running.url, api_key="unused", max_retries=0)
        (use,) = client.messages.create(**ask(running, "x", tools=[WEATHER], tool_choice=choice)).content
        assert use.type == "tool_use"
        assert (use.name, use.input) == ("weather", {"city": "Rome"})
        client.close()


def test_the_assistants_last_turn_is_the_beginning_of_the_answer(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with telling(tmp_path, {}, template=template, begun={"It is": " fine."}) as running:
        client = anthropic.Anthropic(base_url=running.url, api_key="unused", max_retries=0)
        turns = [{"role": "user", "content": "How is it?"}, {"role": "assistant", "content": "It is"}]
        answer = client.messages.create(**{**ask(running, "x"), "messages": turns})
        assert answer.content[0].text == " fine."  # type: ignore[union-attr]
        client.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"model": "claude"}, anthropic.NotFoundError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"max_tokens": 10**9}, anthropic.BadRequestError),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError),
        ({"tool_choice": {"type": "tool", "name": "other"}}, anthropic.BadRequestError),
        ({"tool_choice": {"type": "tool"}}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [{}]}]}]},
         anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"extra_body": {"file": "/etc/passwd"}}, anthropic.BadRequestError),
    ],
)  # fmt: skip
def test_mistakes_are_errors_that_the_client_understands(
    client: anthropic.Anthropic, told: Running, change: dict[str, Any], kind: type[anthropic.APIStatusError]
) -> None:
    with pytest.raises(kind) as caught:
        client.messages.create(**ask(told, "sunny", **change))
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert {*body["error"]} == {"type", "message"}


@pytest.mark.parametrize("raw", [b"{", b"[]", b'{"model": "a\\ud83d"}', b"[" * 5000, b'{"messages": ' + b'{"a":' * 500])
def test_bodies_that_are_none_are_told_in_the_same_shape(told: Running, raw: bytes) -> None:
    with told.client() as client:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = client.post(path, content=raw, headers={"content-type": "application/json"})
            assert answer.status_code == 400
            assert answer.json()["type"] == "error"


def test_a_failure_is_an_event_of_the_stream(
    client: anthropic.Anthropic, told: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told.server.active, "submit", lambda found: [one.sink(Failure("no more")) for one in found])
    with pytest.raises(anthropic.APIStatusError, match="no more"):
        list(client.messages.create(**ask(told, "sunny"), stream=True))
    with pytest.raises(anthropic.InternalServerError, match="no more"):
        client.messages.create(**ask(told, "sunny"))


def test_the_key_may_come_in_either_header(tmp_path: Path, model: Path) -> None:
    with serving(Setup(model, api_key="secret")) as running:
        body = {"model": running.name, "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]}
        with running.client() as client:
            for headers, status in (
                ({"x-api-key": "secret"}, 200),
                ({"authorization": "Bearer secret"}, 200),
                ({"authorization": "Bearer other", "x-api-key": "secret"}, 200),
                ({"x-api-key": "other"}, 401),
                ({}, 401),
            ):
                answer = client.post("/v1/messages", json=body, headers=headers)
                assert answer.status_code == status
            assert json.loads(answer.text)["error"]["type"] == "authentication_error"
            assert client.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200

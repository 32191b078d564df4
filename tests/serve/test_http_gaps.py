"""What is told of a faulty request, names with slashes, pages of other sites, and fields that change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import Running, serving_on

from lumoe.errors import UserError
from lumoe.moe.serve.run import Setup, load, origin_of
from lumoe.moe.serve.scheduler import Limits

SITE = "http://localhost:5173"


def post(running: Running, body: dict[str, Any], path: str = "/v1/completions") -> httpx.Response:
    with running.client() as client:
        return client.post(path, json={"model": running.name, **body})


ACCEPTED = "must be a text, a list of texts, a list of token ids, or a list of such lists; none of them empty"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"prompt": [-1]}, "prompt", "'prompt.0': Input should be greater than or equal to 0"),
        ({"prompt": [5, 7, -1]}, "prompt", "'prompt.2': Input should be greater than or equal to 0"),
        ({"prompt": [[5], [-1]]}, "prompt", "'prompt.1.0': Input should be greater than or equal to 0"),
        ({"prompt": None}, "prompt", f"'prompt': {ACCEPTED}"),
        ({"prompt": 3}, "prompt", f"'prompt': {ACCEPTED}"),
        ({"prompt": [1, "a"]}, "prompt", f"'prompt': {ACCEPTED}"),
        ({"prompt": {"text": "a"}}, "prompt", f"'prompt': {ACCEPTED}"),
        ({}, "prompt", "'prompt': Field required"),
        ({"prompt": "a", "stop": [""]}, "stop", "'stop.0': String should have at least 1 character"),
        ({"prompt": "a", "stop": ["x"] * 17}, "stop", "'stop': List should have at most 16 items"),
        (
            {"prompt": "a", "stop": 3},
            "stop",
            "'stop': must be a text, or a list of up to 16 texts, each of 1 to 256 characters",
        ),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias", "'logit_bias.x': Input should be a valid integer"),
        ({"prompt": "a", "stream_options": {"usage": True}}, "stream_options", "'stream_options.usage' is not a"),
        ({"prompt": "a", "best": 2}, "best", "'best' is not a parameter"),
        ({"prompt": "a", "n": "two"}, "n", "'n': Input should be a valid integer"),
    ],
    ids=str,
)
def test_a_fault_is_named_as_it_was_written(running: Running, body: dict[str, Any], param: str, message: str) -> None:
    answer = post(running, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert error["message"].startswith(message)


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages.0.content"),
        ([{"role": "user", "content": "a"}, {"role": "king", "content": "a"}], "messages.1.role"),
        ([{"content": "a"}], "messages.0.role"),
        (["a"], "messages.0"),
    ],
)
def test_a_fault_within_a_conversation_is_named_by_its_place(running: Running, messages: list[Any], where: str) -> None:
    answer = post(running, {"messages": messages}, "/v1/chat/completions")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(f"'{where}'")


def test_a_choice_of_tool_that_is_none_names_its_field(running: Running) -> None:
    body = {"messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "function"}}
    error = post(running, body, "/v1/chat/completions").json()["error"]
    assert (error["param"], error["message"]) == ("tool_choice", "'tool_choice.function': Field required")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (
            b'{"model": "tiny", "prompt": "x"}',
            None,
            "the body was sent without a content type: send 'Content-Type: app",
        ),
        (
            b'{"model": "tiny", "prompt": "x"}',
            "text/plain",
            "the body was sent as 'text/plain': send 'Content-Type: ap",
        ),
        (b"[1]", "application/json", "the body must be a JSON object"),
        (b"", "application/json", "the body must be a JSON object"),
        (b"{", "application/json", "the body is not JSON"),
    ],
)
def test_a_body_that_is_no_object_is_told_in_a_sentence(
    running: Running, content: bytes, kind: str | None, message: str
) -> None:
    with running.client() as client:
        answer = client.post("/v1/completions", content=content, headers={"content-type": kind} if kind else {})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(message)


def test_a_type_of_json_with_more_words_is_taken(running: Running) -> None:
    content = f'{{"model": "{running.name}", "prompt": "x", "max_tokens": 1}}'.encode()
    with running.client() as client:
        headers = {"content-type": "application/json; charset=utf-8"}
        assert client.post("/v1/completions", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "field",
    ["user", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier"],
)
def test_fields_without_effect_are_taken(running: Running, field: str) -> None:
    value: object = {"metadata": {"a": "b"}, "store": True}.get(field, "auto")
    plain = {"prompt": "the quick", "max_tokens": 4, "temperature": 0}
    expected = post(running, plain).json()["choices"]
    assert post(running, {**plain, field: value}).json()["choices"] == expected


@pytest.fixture(scope="module")
def elsewhere(model: Path) -> Iterator[Running]:
    setup = Setup(model, dtype="float32", name="org/model", api_key="secret", cors_origins=(SITE,))
    with serving_on(load(setup, Limits(slots=2, context=64)), origins=[SITE]) as found:
        yield found


KEY = {"authorization": "Bearer secret"}


def test_a_name_may_have_slashes(elsewhere: Running) -> None:
    with elsewhere.client(headers=KEY) as client:
        for path in ("/v1/models/org/model", "/v1/models/org%2Fmodel"):
            assert client.get(path).json()["id"] == "org/model"
        missing = client.get("/v1/models/org/other")
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_a_named_site_may_ask_and_no_other(elsewhere: Running) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    with elsewhere.client() as client:
        allowed = client.options("/v1/chat/completions", headers={"origin": SITE, **asking})
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == SITE
        assert "authorization" in allowed.headers["access-control-allow-headers"]
        refused = client.options("/v1/chat/completions", headers={"origin": "https://evil.example", **asking})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        answer = client.get("/v1/models", headers={"origin": SITE, **KEY})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SITE)
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=KEY | {"origin": "null"}).headers


def test_key_and_host_are_asked_for_all_the_same(elsewhere: Running) -> None:
    with elsewhere.client() as client:
        without = client.get("/v1/models", headers={"origin": SITE})
        assert without.status_code == 401
        assert without.headers["access-control-allow-origin"] == SITE, "the page is to read why"
        assert client.get("/v1/models", headers={"origin": SITE, "host": "evil.example", **KEY}).status_code == 400
        preflight = {"origin": SITE, "host": "evil.example", "access-control-request-method": "POST"}
        assert client.options("/v1/completions", headers=preflight).status_code == 400


def test_without_origins_no_page_may_read(running: Running) -> None:
    with running.client() as client:
        answer = client.get("/v1/models", headers={"origin": SITE})
        assert "access-control-allow-origin" not in answer.headers


def test_origins_are_written_as_browsers_send_them() -> None:
    assert origin_of("HTTPS://Chat.example:8080/") == "https://chat.example:8080"
    assert origin_of("*") == "*"
    for wrong in ("chat.example", "https://chat.example/page", "", "https://", "https://a@b"):
        with pytest.raises(UserError, match="give scheme and host"):
            origin_of(wrong)


def test_a_budget_may_be_a_whole_float_and_must_be_an_amount(running: Running) -> None:
    with running.client() as client:
        assert client.post("/v1/budget/preview", json={"budget": 1e9}).json()["budget_bytes"] == 10**9
        for wrong, message in (
            (10**20, "'budget': must be from 1 to 9223372036854775807 bytes"),
            (0, "'budget': must be from 1 to 9223372036854775807 bytes"),
            (1.5, "'budget': must be a number of bytes, or text such as 24GB, 22.5GiB or 30%"),
            ([], "'budget': must be a number of bytes, or text such as 24GB, 22.5GiB or 30%"),
        ):
            answer = client.put("/v1/budget", json={"budget": wrong})
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)

"""The server as the openai package meets it."""

from __future__ import annotations

import openai
import pytest
from running import Running

from lumoe.moe.engine.engine import Engine


@pytest.fixture(scope="module")
def client(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)


def greedy(running: Running, prompt: str, tokens: int) -> str:
    prompts, engine = running.server.prompts, running.server.engine
    ids = prompts.encode(prompt)
    return str(prompts.backend.decode(engine.generate(ids, tokens).tolist()))


def test_models(client: openai.OpenAI, running: Running) -> None:
    assert [model.id for model in client.models.list()] == [running.name]
    assert client.models.retrieve(running.name).id == running.name


def test_a_completion_is_what_the_engine_generates(client: openai.OpenAI, running: Running) -> None:
    assert isinstance(running.server.engine, Engine)
    answer = client.completions.create(model=running.name, prompt="the quick", max_tokens=12, temperature=0)
    assert answer.choices[0].text == greedy(running, "the quick", 12)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.prompt_tokens == len(running.server.prompts.encode("the quick"))


def test_a_stream_is_the_same_text_in_pieces(client: openai.OpenAI, running: Running) -> None:
    parts = list(
        client.completions.create(
            model=running.name, prompt="the quick", max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(part.choices[0].text for part in parts[:-1]) == greedy(running, "the quick", 12)
    assert len(parts) > 4
    assert parts[-2].choices[0].finish_reason == "length"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 12


def test_a_chat_is_its_template_completed(client: openai.OpenAI, running: Running) -> None:
    messages = [{"role": "user", "content": "the lazy"}, {"role": "user", "content": [{"type": "text", "text": "dog"}]}]
    answer = client.chat.completions.create(
        model=running.name, messages=messages, max_completion_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )  # type: ignore[call-overload]
    text = "the lazy\n\ndog\n\n"
    assert answer.choices[0].message.content == greedy(running, text, 6)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 6
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == entry.logprob, "greedy: the token drawn is the most likely one"
    assert (
        b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == answer.choices[0].message.content
    )
    pieces = client.chat.completions.create(
        model=running.name, messages=messages, max_tokens=6, temperature=0, stream=True
    )  # type: ignore[call-overload]
    deltas = [piece.choices[0].delta for piece in pieces]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == answer.choices[0].message.content


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, running: Running) -> None:
    text = greedy(running, "a stitch", 24)
    stop = text[7:10]
    for stream in (False, True):
        answer = client.completions.create(
            model=running.name, prompt="a stitch", max_tokens=24, temperature=0, stop=[stop, "never"], stream=stream
        )
        parts = list(answer) if stream else [answer]  # type: ignore[call-overload]
        assert "".join(part.choices[0].text for part in parts) == text[: text.index(stop)]
        assert parts[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_and_choices_differ(client: openai.OpenAI, running: Running) -> None:
    def ask(seed: int) -> list[str]:
        answer = client.completions.create(
            model=running.name,
            prompt=["the quick", "a stitch"],
            max_tokens=8,
            temperature=1.5,
            top_p=0.95,
            seed=seed,
            n=2,
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.usage is not None
        prompts = running.server.prompts
        assert answer.usage.prompt_tokens == len(prompts.encode("the quick")) + len(prompts.encode("a stitch"))
        return [choice.text for choice in answer.choices]

    assert ask(5) == ask(5)
    assert len({*ask(5), *ask(6)}) > 4


def test_hardly_any_temperature_is_greedy(client: openai.OpenAI, running: Running) -> None:
    answer = client.completions.create(model=running.name, prompt="the quick", max_tokens=6, temperature=1e-300)
    assert answer.choices[0].text == greedy(running, "the quick", 6)


def test_logprobs_of_a_completion_line_up_with_the_text(client: openai.OpenAI, running: Running) -> None:
    answer = client.completions.create(model=running.name, prompt="fox", max_tokens=5, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert len(logprobs.tokens) == 5
    assert logprobs.text_offset is not None
    text = answer.choices[0].text
    for token, begin, end in zip(
        logprobs.tokens, logprobs.text_offset, [*logprobs.text_offset[1:], len(text)], strict=True
    ):
        # A byte that is no character by itself is named by its value.
        assert token.startswith("bytes:") or token == text[begin:end]
    assert all(len(top) == 2 for top in logprobs.top_logprobs or [])


def test_token_ids_are_a_prompt(client: openai.OpenAI, running: Running) -> None:
    ids = running.server.prompts.encode("the quick")
    by_ids = client.completions.create(model=running.name, prompt=ids, max_tokens=5, temperature=0)
    assert by_ids.choices[0].text == greedy(running, "the quick", 5)


@pytest.mark.parametrize(
    ("field", "harmless", "unsupported"),
    [
        ("response_format", {"type": "text"}, {"type": "json_schema"}),
        ("tools", [], [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "none", "required"),
    ],
)
def test_what_would_change_the_answer_is_refused_and_what_would_not_is_taken(
    client: openai.OpenAI, running: Running, field: str, harmless: object, unsupported: object
) -> None:
    ask = {"model": running.name, "messages": [{"role": "user", "content": "the lazy"}], "max_tokens": 2}
    assert client.chat.completions.create(**ask, extra_body={field: harmless}).choices  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ask, extra_body={field: unsupported})  # type: ignore[call-overload]
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("change", "kind", "param"),
    [
        ({"model": "gpt-5"}, openai.NotFoundError, "model"),
        ({"max_tokens": -1}, openai.BadRequestError, "max_tokens"),
        ({"temperature": "hot"}, openai.BadRequestError, "temperature"),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"top_p": 0}, openai.BadRequestError, "top_p"),
        ({"prompt": ""}, openai.BadRequestError, "prompt"),
        ({"prompt": []}, openai.BadRequestError, "prompt"),
        ({"prompt": [10**6]}, openai.BadRequestError, "prompt"),
        ({"prompt": "word " * 400}, openai.BadRequestError, "prompt"),
        ({"max_tokens": 10**9}, openai.BadRequestError, "max_tokens"),
        ({"frequency_penalty": 2.5}, openai.BadRequestError, "frequency_penalty"),
        ({"extra_body": {"file": "/etc/passwd"}}, openai.BadRequestError, "file"),
        ({"extra_body": {"preference": "cheap"}}, openai.BadRequestError, "preference"),
    ],
)
def test_mistakes_are_errors_that_the_client_understands(
    client: openai.OpenAI, running: Running, change: dict[str, object], kind: type[openai.APIStatusError], param: str
) -> None:
    request = {"model": running.name, "prompt": "x", "max_tokens": 4, **change}
    with pytest.raises(kind) as caught:
        client.completions.create(**request)  # type: ignore[call-overload]
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) == {"message", "type", "param", "code"}
    assert body["param"] == param
    assert body["message"]

"""Answers that are held to a form, from models that would say anything else, on both kinds of tokenizer."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jsonschema
import openai
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from running import Running, serving
from spoken import KINDS, random_model
from told import TEMPLATE as TOLD
from told import cue, telling

from lumoe.moe.serve import app, constraints
from lumoe.moe.serve.constraints import (
    Constraint,
    ConstraintError,
    Form,
    Freedom,
    Grammars,
    constraint_for_schema,
)
from lumoe.moe.serve.detokenizer import TokenBytes
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.sampling import Sampler, Sampling, sample
from lumoe.moe.serve.scheduler import Limits

TEMPLATE = (
    "{% if tools %}{% for t in tools %}{{ t.function.name }}{% endfor %}<tool_call>{% endif %}"
    "{% for m in messages %}{{ m.content }} {% endfor %}"
)
SHAPES: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"],
     "additionalProperties": False},
    {"enum": ["red", "green", 3, None, {"deep": [1, 2]}]},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 3}]},
    {"type": "object", "properties": {"mail": {"type": "string", "pattern": "^[a-z]{1,3}@sea[.]org$"},
     "day": {"type": "string", "format": "date"}}, "required": ["mail", "day"], "additionalProperties": False},
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"name": {"const": "é€"},
     "next": {"anyOf": [{"type": "null"}, {"const": 1}]}}, "required": ["name", "next"],
     "additionalProperties": False}}},
    {"type": "integer", "minimum": -20, "maximum": 300, "multipleOf": 7},
    {"type": "array", "prefixItems": [{"const": "sea"}, {"type": "boolean"}], "items": False, "minItems": 2},
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def held(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    tokenizer = KINDS[request.param]()
    tokenizer.chat_template = TEMPLATE
    folder = random_model(tmp_path_factory.mktemp("held") / "model", tokenizer, max_position_embeddings=512)
    with serving(Setup(folder, dtype="float32"), Limits(slots=8, context=512)) as running:
        yield running


@pytest.fixture
def client(held: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{held.url}/v1", api_key="unused", max_retries=0, timeout=60)


def complete(running: Running, **more: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": running.name, "prompt": "there was", "max_tokens": 200, **more}
    with running.client() as client:
        answer = client.post("/v1/completions", json=body)
    return answer.status_code, answer.json()


def text_of(running: Running, **more: Any) -> str:
    status, body = complete(running, **more)
    assert status == 200, body
    choice = body["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    return str(choice["text"])


def asked(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


@pytest.mark.parametrize("temperature", [0, 1])
def test_answers_fit_their_schemas_in_any_company(held: Running, temperature: float) -> None:
    def ask(schema: dict[str, Any]) -> str:
        return text_of(held, response_format=asked(schema), temperature=temperature, seed=5)

    with ThreadPoolExecutor(len(SHAPES)) as pool:
        together = list(pool.map(ask, SHAPES))
    for schema, text in zip(SHAPES, together, strict=True):
        jsonschema.validate(json.loads(text), schema)
    assert [ask(schema) for schema in SHAPES] == together, "company changes nothing"


LEAVES = st.sampled_from(
    [{"type": "boolean"}, {"type": "null"}, {"enum": ["a", "b c", 7]}, {"type": "integer", "minimum": 0, "maximum": 99},
     {"type": "string", "maxLength": 2}, {"const": "ß\n\"😀"}]
)  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["x", "y z", "ö", '"']), inner, max_size=2).map(_object),
        inner.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(inner, min_size=1, max_size=2).map(lambda options: {"anyOf": options}),
    ),
    max_leaves=4,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 2**31))
def test_any_schema_is_kept(held: Running, schema: dict[str, Any], seed: int) -> None:
    status, body = complete(held, guided_json=schema, seed=seed, max_tokens=400)
    assert status == 200, body
    choice = body["choices"][0]
    if choice["finish_reason"] == "stop":
        jsonschema.validate(json.loads(choice["text"]), schema)
    else:
        assert (choice["finish_reason"], body["usage"]["completion_tokens"]) == ("length", 400)


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_expressions_choices_and_grammars_are_kept(held: Running, temperature: float) -> None:
    expression = r"(the |a/b ){2,3}s[ea]+?[0-9]{2}€"
    newer = "structured_outputs"
    for more in ({"guided_regex": expression}, {newer: {"regex": expression}}):
        text = text_of(held, temperature=temperature, **more)
        assert re.fullmatch(expression, text), text
    choices = ["near the sea", "near", '"\\\n', "é😀"]
    for more in ({"guided_choice": choices}, {newer: {"choice": choices}}):
        assert text_of(held, temperature=temperature, **more) in choices
    for grammar in ('start: "(" (start | NUM) ")"\nNUM: /[0-9]{1,3}/', 'root ::= "(" (root | [0-9] [0-9]?) ")"'):
        for more in ({"guided_grammar": grammar}, {newer: {"grammar": grammar}}):
            text = text_of(held, temperature=temperature, logit_bias={}, max_tokens=300, **more)
            assert re.fullmatch(r"(\(+)\d{1,3}(\)+)", text), text
            assert text.count("(") == text.count(")")
    assert isinstance(json.loads(text_of(held, **{newer: {"json": json.dumps(SHAPES[0])}})), dict)


def test_choices_seeds_streams_and_stop_strings(held: Running) -> None:
    form = {"response_format": asked(SHAPES[4]), "seed": 3}
    _, several = complete(held, **form, n=3, logprobs=2)
    for choice in several["choices"]:
        jsonschema.validate(json.loads(choice["text"]), SHAPES[4])
        # The model's own, before anything was taken out: nearly all it would say is not JSON.
        assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])
    assert len({choice["text"] for choice in several["choices"]}) > 1
    assert complete(held, **form, n=3)[1]["choices"][2]["text"] == several["choices"][2]["text"]
    with held.client() as client:
        body = {"model": held.name, "prompt": "there was", "max_tokens": 200, "stream": True, **form}
        lines = client.post("/v1/completions", json=body).text.split("\n\n")
    pieces = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    assert "".join(piece["text"] for piece in pieces) == several["choices"][0]["text"]
    assert pieces[-1]["finish_reason"] == "stop"
    stopped = text_of(held, **form, stop=["@"])
    assert several["choices"][0]["text"].startswith(stopped)
    assert "@" not in stopped
    status, cut = complete(held, **form, max_tokens=3)
    assert (status, cut["choices"][0]["finish_reason"]) == (200, "length")


def test_tokens_that_end_an_answer_end_it_where_the_form_does(held: Running) -> None:
    tokens, size = held.server.prompts.tokens, held.server.prompts.backend.get_vocab_size()
    ends = [token for token in range(size) if token not in tokens.special and tokens.of(token) == b"q"]
    bias = dict.fromkeys(map(str, ends), 100.0)
    ask: dict[str, Any] = {"stop_token_ids": ends, "logit_bias": bias}
    assert text_of(held, guided_regex="[qz]{12}", **ask) == "z" * 12, "what ends is no letter any more"
    # It may come as soon as the form is whole, and it is what the bias wants.
    assert text_of(held, guided_regex="[qz]{4,9}", **ask) == "zzzz"


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": {"type": "text", "json_schema": {"name": "x"}}}, "response_format", "json_schema"),
        ({"response_format": asked({"properties": {"a/b": {"items": {"type": "strin"}}}})}, "response_format",
         "'response_format.json_schema.schema': at /properties/a~1b/items: Invalid type: strin"),
        ({"response_format": asked({"$ref": "#/$defs/q", "$defs": {"q": {"anyOf": [{}, {"not": {}}]}}})},
         "response_format", 'at /$defs/q/anyOf/1: Unimplemented keys: ["not"]'),
        ({"guided_json": {"uniqueItems": True, "x-guidance": {"lenient": True}}}, "guided_json", "uniqueItems"),
        ({"guided_json": {"type": "integer", "minimum": 3, "maximum": 2}}, "guided_json", "Unsatisfiable"),
        ({"guided_json": False}, "guided_json", "no answer fits"),
        ({"guided_json": {"multipleOf": 1e300}}, "guided_json", "multipleOf"),
        ({"guided_json": {"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}}, "guided_json", "at /allOf/1"),
        ({"guided_grammar": 'start: %json {"multipleOf": 1e300}'}, "guided_grammar", "%json"),
        ({"guided_json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}}, "guided_json", "no answer"),
        ({"guided_json": "{"}, "guided_json", ""),
        ({"guided_json": "[" * 9999}, "guided_json", ""),
        ({"guided_json": [1]}, "guided_json", ""),
        ({"guided_json": {"$ref": "https://example.org/x"}}, "guided_json", "not present"),
        ({"guided_json": {"properties": {"a": 3}}}, "guided_json", "at /properties/a"),
        ({"guided_json": {"pattern": "(?=a)", "type": "string"}}, "guided_json", "look-around"),
        ({"guided_regex": "a("}, "guided_regex", "unclosed group"),
        ({"guided_regex": r"(a)\1"}, "guided_regex", "backreferences"),
        ({"guided_regex": r"[^\s\S]"}, "guided_regex", "no answer fits"),
        ({"guided_regex": "a" * 300_000}, "guided_regex", "longer than"),
        ({"guided_choice": []}, "guided_choice", ""),
        ({"guided_choice": "a"}, "guided_choice", ""),
        ({"guided_grammar": "start: x"}, "guided_grammar", "1(8): unknown name"),
        ({"guided_grammar": "start: <|turn|>"}, "guided_grammar", "unknown special token"),
        ({"guided_grammar": "start: <[0]>"}, "guided_grammar", "allows no token"),
        ({"guided_grammar": ""}, "guided_grammar", "neither"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs", "'structured_outputs.regex'"),
        ({"structured_outputs": {"whitespace_pattern": " "}}, "structured_outputs", "not a parameter"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, None, "'guided_regex' and 'guided_choice'"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_with_the_place(
    held: Running, body: dict[str, Any], param: str | None, said: str
) -> None:
    status, answer = complete(held, **body)
    assert status == 400, answer
    assert answer["error"]["param"] == param
    assert said in answer["error"]["message"]
    assert "x-guidance" not in answer["error"]["message"]


class Place(BaseModel):
    lat: Literal[1, 2]
    near: bool | None


class Trip(BaseModel):
    name: Literal["sea", "house"]
    places: tuple[Place, Place]


def test_the_package_parses_answers_into_models(client: openai.OpenAI, held: Running) -> None:
    messages: list[Any] = [{"role": "user", "content": "there was"}]
    answer = client.chat.completions.parse(model=held.name, messages=messages, response_format=Trip, max_tokens=300)
    assert isinstance(answer.choices[0].message.parsed, Trip)
    response = client.responses.parse(model=held.name, input="there was", text_format=Trip)
    assert isinstance(response.output_parsed, Trip)
    plain = client.chat.completions.create(
        model=held.name, messages=messages, response_format={"type": "json_object"}, max_tokens=9, temperature=0
    )
    assert (plain.choices[0].message.content or "").startswith("{")


CALL = {"type": "function", "function": {"name": "weather", "parameters": SHAPES[4]}}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_calls_that_have_to_come_fit_their_schemas(client: openai.OpenAI, held: Running, choice: Any) -> None:
    other = {"type": "function", "function": {"name": "other", "parameters": SHAPES[0]}}
    for seed in range(3):
        answer = client.chat.completions.create(
            model=held.name, messages=[{"role": "user", "content": "there was"}], tools=[CALL, other],  # type: ignore
            tool_choice=choice, seed=seed,
        )  # fmt: skip
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or ()
        assert call.type == "function"
        assert call.function.name in ({"weather", "other"} if choice == "required" else {"weather"})
        schema = SHAPES[4] if call.function.name == "weather" else SHAPES[0]
        jsonschema.validate(json.loads(call.function.arguments), schema)


def test_schemas_of_calls_keep_their_references_and_what_is_not_strict_is_lenient(
    client: openai.OpenAI, held: Running
) -> None:
    tree = {"type": "object", "properties": {"node": {"$ref": "#/$defs/node"}}, "required": ["node"],
            "additionalProperties": False, "$defs": SHAPES[5]["$defs"]}  # fmt: skip
    odd = {**tree, "properties": {**tree["properties"], "q": {"type": "array", "uniqueItems": True, "maxItems": 0}}}
    function: dict[str, Any] = {"name": "plant", "parameters": odd}
    ask: dict[str, Any] = {"model": held.name, "messages": [{"role": "user", "content": "a"}], "max_tokens": 400,
                           "tool_choice": {"type": "function", "function": {"name": "plant"}}}  # fmt: skip
    for tools in ([function], [function, {"name": "other"}]):
        answer = client.chat.completions.create(
            **ask, tools=[{"type": "function", "function": one} for one in tools], seed=2
        )
        jsonschema.validate(json.loads(answer.choices[0].message.tool_calls[0].function.arguments), odd)
        both = {**ask, "tool_choice": "required"}
        assert client.chat.completions.create(**both, tools=[CALL, {"type": "function", "function": function}]).choices
    with pytest.raises(
        openai.BadRequestError, match=r"'tools': at /properties/arguments/properties/q: .*unique"
    ) as bad:
        client.chat.completions.create(**ask, tools=[{"type": "function", "function": {**function, "strict": True}}])
    assert bad.value.param == "tools"


def test_a_form_beside_tools_needs_a_token_that_begins_a_call(client: openai.OpenAI, held: Running) -> None:
    ask: dict[str, Any] = {"model": held.name, "messages": [{"role": "user", "content": "a"}], "tools": [CALL],
                           "response_format": asked(SHAPES[0])}  # fmt: skip
    with pytest.raises(openai.BadRequestError, match="cannot be told from an answer") as caught:
        client.chat.completions.create(**ask)
    assert caught.value.param == "response_format"
    answer = client.chat.completions.create(**ask, tool_choice="none")
    jsonschema.validate(json.loads(answer.choices[0].message.content or ""), SHAPES[0])
    turns = [*ask["messages"], {"role": "assistant", "content": "{"}]
    with pytest.raises(openai.BadRequestError, match="a form holds whole answers"):
        client.chat.completions.create(**{**ask, "messages": turns}, extra_body={"continue_final_message": True})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("open_thought", [False, True])
def test_thoughts_come_before_a_form_and_calls_instead(tmp_path: Path, kind: str, open_thought: bool) -> None:
    answers = {"number": '<think>the sea</think>{"a": 5}', "rome": '<tool_call>{"name": "weather", "arguments": {}}'}
    template = TOLD.replace("<tool_call>", "") + ("<think>" if open_thought else "{# <think> </think> <tool_call> #}")
    special = ["<think>", "</think>", "<tool_call>"]
    begun = {"<think>": 'so be it</think>{"a":\n7}'} if open_thought else {}
    with telling(tmp_path, {} if open_thought else answers, kind, template, special, begun) as running:
        client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=60)

        def ask(name: str) -> Any:
            return client.chat.completions.create(
                model=running.name, messages=[{"role": "user", "content": cue(name)}], temperature=0,
                response_format=asked(SHAPES[0]), tools=[CALL], max_tokens=60,  # type: ignore
            ).choices[0]  # fmt: skip

        thought, content = ("so be it", '{"a":\n7}') if open_thought else ("the sea", '{"a": 5}')
        number = ask("number")
        assert number.message.reasoning_content == thought
        assert (number.message.content, number.finish_reason) == (content, "stop")
        if not open_thought:
            rome = ask("rome")
            assert (rome.finish_reason, rome.message.tool_calls[0].function.name) == ("tool_calls", "weather")


def test_a_sequence_that_is_paused_goes_on_as_it_was(held: Running) -> None:
    ask = {"guided_regex": "([a-z]{1,9} ){30}sea[.]", "seed": 1, "max_tokens": 400}
    alone = text_of(held, **ask)
    scheduler, pauses = held.server.active, 0

    def pause() -> int:
        running = [one for one in scheduler._running if one.decoding]
        for generation in running:
            scheduler._pause(generation)
        return len(running)

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(text_of, held, **ask) for _ in range(2)]
        while not all(answer.done() for answer in answers):
            pauses += scheduler.call(pause).result(10)
            time.sleep(0.02)
    assert pauses > 2
    assert [answer.result() for answer in answers] == [alone] * 2


def test_what_takes_long_to_compile_is_refused(held: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "COMPILE_S", 0)
    status, answer = complete(held, guided_regex="a{77}b")
    assert (status, answer["error"]["param"]) == (400, "guided_regex")
    assert complete(held)[0] == 200


def test_a_sequence_that_loses_its_way_fails_alone(held: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = constraints.Follower.allowed

    def lost(self: constraints.Follower) -> torch.Tensor:
        if self._taken == 1:
            raise ConstraintError("the form of the answer allows no token of the vocabulary here")
        return allowed(self)

    monkeypatch.setattr(constraints.Follower, "allowed", lost)
    with ThreadPoolExecutor(2) as pool:
        bad = pool.submit(complete, held, guided_regex="[a-z]{60}")
        good = pool.submit(complete, held, max_tokens=60)
    assert good.result()[0] == 200
    status, answer = bad.result()
    assert (status, answer["error"]["code"]) == (500, "generation_failed")
    assert "allows no token" in answer["error"]["message"]


# What follows needs no server.


def spelled(kind: str) -> tuple[list[bytes], Grammars, int]:
    tokenizer = KINDS[kind]()
    tokens = TokenBytes(tokenizer.backend_tokenizer)
    size, end = len(tokenizer) + 3, tokenizer.eos_token_id
    spellings = tokens.spellings(size, {end})
    return spellings, Grammars(lambda: spellings), end


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_whose_bytes_go_on_may_come(kind: str) -> None:
    spellings, grammars, end = spelled(kind)
    assert spellings[-3:] == [b""] * 3
    follower = grammars.compile(Constraint("regex", "(the| the|é)?")).follow(frozenset({end, 10**6}))
    begins = [b"the"[:size] for size in (1, 2, 3)] + [b" the"[:size] for size in (1, 2, 3, 4)] + ["é".encode()[:1]]
    expected = [token in begins for token in spellings]
    expected[end] = True
    assert follower.allowed().tolist() == expected
    follower.take(spellings.index(b"\xc3"))
    assert {spellings[token] for token in follower.allowed().nonzero().flatten()} == {b"\xa9"}
    assert not follower.complete
    follower.take(spellings.index(b"\xa9"))
    assert follower.complete


def test_a_wrong_token_shows_at_the_next_one() -> None:
    spellings, grammars, _ = spelled("byte-level")
    follower = grammars.compile(Constraint("regex", "ab")).follow()
    follower.take(spellings.index(b"b"))
    assert not follower.complete
    with pytest.raises(ConstraintError, match="satisfy the grammar"):
        follower.allowed()


def test_a_thought_may_come_first_and_a_call_instead() -> None:
    spellings, grammars, end = spelled("byte-level")
    opens, closes, mark, a = (spellings.index(letter) for letter in (b"[", b"]", b"|", b"a"))
    freedom = Freedom((opens, closes), calls=frozenset({mark}))
    grammar, ends = grammars.compile(Constraint("regex", "aa")), frozenset({end})

    def after(*tokens: int, thinking: bool = False) -> set[int]:
        follower = grammar.follow(ends, Freedom(freedom.thought, thinking, freedom.calls))
        for token in tokens:
            follower.take(token)
        return set(follower.allowed().nonzero().flatten().tolist())

    whole = set(range(len(spellings)))
    assert after() == {a, opens, mark} | ({spellings.index(b"aa")} if b"aa" in spellings else set())
    assert after(opens) == after(opens, a) == after(thinking=True) == whole - {end}
    assert after(opens, a, closes) == after(closes, thinking=True) == after() - {opens}
    assert after(mark) == after(mark, a, a, a) == whole
    assert after(a) == {a}


def test_the_form_is_of_the_message_that_the_answer_ends_with() -> None:
    spellings, grammars, end = spelled("byte-level")
    header, message, f, i, x = (spellings.index(letter) for letter in (b"[", b"]", b"f", b"i", b"x"))
    grammar, ends = grammars.compile(Constraint("regex", "y")), frozenset({end})
    y = spellings.index(b"y")

    def after(*tokens: int) -> set[int]:
        follower = grammar.follow(ends, Freedom(thinking=True, final=(header, f, i, message)))
        for token in tokens:
            follower.take(token)
        return set(follower.allowed().nonzero().flatten().tolist())

    free = set(range(len(spellings))) - {end}
    for thought in ((), (header, x, message), (header, f, message, x), (message, f, i), (header, x, f, i, message),
                    (header, f, i), (f, i, message)):  # fmt: skip
        assert after(*thought) == free
        assert after(*thought, header, f, i, message) == {y}
        assert after(*thought, header, f, i, x, message) == {y}
    assert after(header, f, i, message, y) == {end}


def test_draws_among_what_may_come_are_those_of_the_model() -> None:
    spellings, grammars, _ = spelled("byte-level")
    form = Form(grammars.compile(Constraint("regex", "[ab]")))
    letters = [spellings.index(letter) for letter in (b"a", b"b")]
    logits = torch.full((1, len(spellings)), 3.0)
    logits[0, letters] = torch.tensor([1.0, 0.0])
    drawn = [
        sample(logits, [Sampler(Sampling(seed=seed, form=form, top_k=5, top_p=0.99, top_logprobs=1))])[0]
        for seed in range(400)
    ]
    assert 250 < sum(one.token == letters[0] for one in drawn) < 330, "e / (1 + e) of 400 are 292"
    assert {one.token for one in drawn} == {*letters}
    own = torch.log_softmax(logits[0], -1)
    assert all(one.logprob == pytest.approx(float(own[one.token])) for one in drawn)
    assert all(one.top[0][1] == pytest.approx(float(own.max())) for one in drawn)


def test_few_forms_are_kept_and_none_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraints, "KEPT", 2)
    _, grammars, _ = spelled("byte-level")
    first, second = (Constraint("choice", json.dumps([text]), "x") for text in "ab")
    kept = grammars.compile(first)
    assert grammars.compile(Constraint("choice", '["a"]', "elsewhere")) is kept
    grammars.compile(second)
    with pytest.raises(ConstraintError):
        grammars.compile(Constraint("regex", "("))
    assert grammars.compile(first) is kept
    grammars.compile(constraint_for_schema({}))
    assert grammars.compile(first) is kept
    grammars.compile(constraint_for_schema({"type": "null"}))
    grammars.compile(second)
    assert grammars.compile(first) is not kept


def test_the_library_is_loaded_when_a_form_is_first_asked_for() -> None:
    code = (
        "import sys; from lumoe.moe.serve.constraints import Constraint, Grammars; import lumoe.moe.serve.app\n"
        "before = 'llguidance' in sys.modules; Grammars(lambda: [b'a']).compile(Constraint('regex', 'a'))\n"
        "print(before, 'llguidance' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]

"""What goes wrong on the wire, in the client and in the engine: the right answer, and the server lives on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import openai
import pytest
from running import Running, serving

from lumoe.moe.serve.app import MAX_BODY_BYTES
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with running.client() as found:
        yield found


def ask(running: Running, **more: object) -> dict[str, object]:
    return {"model": running.name, "prompt": "the quick", "max_tokens": 4, "temperature": 0, **more}


def is_error(response: httpx.Response) -> bool:
    error = response.json()["error"]
    return set(error) == {"message", "type", "param", "code"} and bool(error["message"])


def wait_until(condition: object, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    "body", [b"{", b"", b"\xff\xfe", b"[1, 2]", b'"text"', b"null", b'{"model": 1e999}', b"[" * 5000]
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_that_is_no_request_is_400(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert is_error(response)


def test_form_data_is_400(client: httpx.Client) -> None:
    response = client.post("/v1/completions", data={"model": "x", "prompt": "y"})
    assert response.status_code == 400
    assert is_error(response)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        [{"role": "robot", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
    ],
)
def test_messages_that_are_none_are_400(client: httpx.Client, running: Running, messages: object) -> None:
    response = client.post("/v1/chat/completions", json={"model": running.name, "messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/files", 404), ("GET", "/../../etc/passwd", 404), ("GET", "/v1/models/..%2F..%2Fetc%2Fpasswd", 404),
     ("GET", "/v1/completions", 405), ("DELETE", "/v1/budget", 405), ("GET", "/docs", 404)],
)  # fmt: skip
def test_other_addresses_are_errors_of_the_same_shape(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert is_error(response)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_beyond_the_limit_is_413(client: httpx.Client, announced: bool) -> None:
    chunk = b" " * (1 << 20)
    count = MAX_BODY_BYTES // len(chunk) + 1

    def chunks() -> Iterator[bytes]:
        for _ in range(count):
            yield chunk

    content = chunk * count if announced else chunks()
    response = client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert is_error(response)
    assert str(MAX_BODY_BYTES) in response.json()["error"]["message"]


def test_the_openapi_document_names_the_model(client: httpx.Client, running: Running) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    assert [schemas[name]["properties"]["model"]["enum"] for name in ("CompletionRequest", "ChatRequest")] == [
        [running.name],
        [running.name],
    ]


def test_another_sites_name_is_not_answered(client: httpx.Client) -> None:
    assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/v1/models", headers={"Host": "localhost:1234"}).status_code == 200


def test_a_key_guards_what_it_should(model: Path) -> None:
    setup = Setup(model, dtype="float32", api_key="open sesame")
    with serving(setup, Limits(slots=1, context=64)) as running, running.client() as client:
        for method, path in (("GET", "/v1/budget"), ("PUT", "/v1/budget"), ("GET", "/v1/models"), ("GET", "/v1/state")):
            for key in ("", "Bearer wrong", "Basic open sesame", "Bearer öffne"):
                response = client.request(method, path, headers={"Authorization": key.encode()}, json={})
                assert response.status_code == 401, (path, key)
                assert is_error(response)
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0).models.list()
        friend = openai.OpenAI(base_url=f"{running.url}/v1", api_key="open sesame", max_retries=0)
        assert [card.id for card in friend.models.list()] == [running.name]
        for path in ("/health", "/metrics", "/"):
            assert client.get(path).status_code == 200


def test_a_full_queue_is_429_with_retry_after(model: Path) -> None:
    with serving(Setup(model, dtype="float32"), Limits(slots=1, context=256, queue=2)) as running:
        go, step = Event(), running.server.engine.step

        def held(*arguments: object, **options: object) -> object:
            go.wait(30)
            return step(*arguments, **options)  # type: ignore[arg-type]

        running.server.engine.step = held  # type: ignore[method-assign, assignment]
        scheduler = running.server.active
        with ThreadPoolExecutor(3) as pool, running.client() as client:
            first = [pool.submit(client.post, "/v1/completions", json=ask(running)) for _ in range(3)]
            assert wait_until(lambda: scheduler.running == 1 and scheduler.waiting == 2)
            refused = client.post("/v1/completions", json=ask(running))
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert is_error(refused)
            with pytest.raises(openai.RateLimitError):
                openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0).completions.create(
                    model=running.name, prompt="x"
                )
            go.set()
            assert [response.result().status_code for response in first] == [200] * 3


def test_a_client_that_leaves_frees_its_slot(running: Running, client: httpx.Client) -> None:
    scheduler = running.server.active
    for stream in (True, False):
        body = ask(running, max_tokens=240, stream=stream, logprobs=5)
        with running.client() as leaver:
            if stream:
                with leaver.stream("POST", "/v1/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    leaver.post("/v1/completions", json=body, timeout=0.05)
        assert wait_until(lambda: scheduler.running == 0)
    assert 'lumoe_sequences_total{outcome="cancelled"}' in client.get("/metrics").text
    assert client.post("/v1/completions", json=ask(running)).status_code == 200


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_streams_and_may_be_killed(running: Running, client: httpx.Client) -> None:
    command = ["curl", "--silent", "--no-buffer", "--noproxy", "*", f"{running.url}/v1/completions",
               "--header", "Content-Type: application/json", "--data"]  # fmt: skip
    done = subprocess.run([*command, json.dumps(ask(running, stream=True))], capture_output=True, text=True, check=True)
    events = [line.removeprefix("data: ") for line in done.stdout.splitlines() if line]
    assert events[-1] == "[DONE]"
    whole = client.post("/v1/completions", json=ask(running)).json()["choices"][0]["text"]
    assert "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1]) == whole

    scheduler = running.server.active
    body = json.dumps(ask(running, stream=True, max_tokens=240))
    with subprocess.Popen([*command, body], stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        killed.send_signal(signal.SIGKILL)
    assert wait_until(lambda: scheduler.running == 0)
    assert client.get("/health").json()["status"] == "ok"


def test_a_fault_of_the_engine_is_told_and_survived(running: Running, client: httpx.Client) -> None:
    step, calls = running.server.engine.step, []

    def broken(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) % 3 == 0:
            raise OSError("the disk is gone")
        return step(*arguments, **options)  # type: ignore[arg-type]

    running.server.engine.step = broken  # type: ignore[method-assign, assignment]
    friend = openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0)
    try:
        failed = client.post("/v1/completions", json=ask(running))
        assert failed.status_code == 500
        assert "the disk is gone" in failed.json()["error"]["message"]
        with pytest.raises(openai.APIError, match="the disk is gone"):
            list(friend.completions.create(model=running.name, prompt="x", max_tokens=4, temperature=0, stream=True))
    finally:
        running.server.engine.step = step  # type: ignore[method-assign]
    assert client.post("/v1/completions", json=ask(running)).status_code == 200


def test_metrics_count_what_was_done(running: Running, client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ['lumoe_tokens_total{kind="completion"}', 'lumoe_tokens_total{kind="prompt"}',
             "lumoe_time_to_first_token_seconds_count", "lumoe_time_per_output_token_seconds_count",
             'lumoe_sequences_total{outcome="length"}']  # fmt: skip
    before = [value(name) for name in names]
    used = client.post("/v1/completions", json=ask(running)).json()["usage"]
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [4, used["prompt_tokens"], 1, 3, 1]
    engine = running.server.engine
    assert value('lumoe_tier_bytes{tier="fast"}') == engine.bytes_fast
    assert value("lumoe_expert_uses_total") == engine.metrics()["hits"] + engine.metrics()["misses"]
    assert value("lumoe_plan_experts{") == engine.plan.bits.size
    assert value("lumoe_budget_bytes") == running.server.governor.budget_bytes
    assert value("lumoe_tokens_per_second") > 0
    for name in ("lumoe_reconfiguration_seconds_count", "lumoe_moved_bytes_total", "process_resident_memory_bytes"):
        assert value(name) > 0, name

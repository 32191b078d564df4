"""Clients that mean harm, on the loopback address: others are served meanwhile, and nothing of them stays behind.

Counts are small here; `LUMOE_HOSTILE_CLIENTS` multiplies them (docs/reliability.md).
"""

from __future__ import annotations

import gc
import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import httpx
import psutil
import pytest
from running import Running, serving

from lumoe.moe.engine import heap
from lumoe.moe.serve.run import Setup
from lumoe.moe.serve.scheduler import Limits

TIMES = int(os.environ.get("LUMOE_HOSTILE_CLIENTS", "1"))
# Of 32 in a request.
SEQUENCES = 313 * 32 * TIMES
SLACK_BYTES = 48 << 20
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def held(model: Path) -> Iterator[Running]:
    """A server of our own: what it holds is counted."""
    with serving(Setup(model, dtype="float32"), Limits(slots=4, context=256, queue=SEQUENCES)) as running:
        yield running


@pytest.fixture
def level(held: Running) -> Iterator[None]:
    """Check that connections, sequences and memory are what they were before."""
    assert served(held)
    process, scheduler = psutil.Process(), held.server.active
    gc.collect()
    heap.trim()
    files, memory = process.num_fds(), process.memory_info().rss
    yield
    end = time.monotonic() + 30
    while time.monotonic() < end and (process.num_fds() > files or scheduler.running or scheduler.waiting):
        time.sleep(0.05)
    assert (scheduler.running, scheduler.waiting) == (0, 0)
    assert process.num_fds() <= files
    gc.collect()
    heap.trim()
    assert process.memory_info().rss < memory + SLACK_BYTES
    assert served(held)


def served(running: Running) -> bool:
    """Whether an honest client gets its answer."""
    with running.client() as client:
        body = {"model": running.name, "prompt": "the quick", "max_tokens": 2, "temperature": 0}
        return client.post("/v1/completions", json=body).status_code == 200


def connect(running: Running) -> socket.socket:
    url = httpx.URL(running.url)
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def status(connection: socket.socket) -> int:
    """Status of the answer, 0 where the server just closed."""
    try:
        line = connection.makefile("rb").readline()
    except ConnectionResetError:
        return 0
    return int(line.split()[1]) if line else 0


@pytest.mark.usefixtures("level")
def test_half_open_and_slow_connections_keep_nobody_out(held: Running) -> None:
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(held)) for _ in range(150 * TIMES)]
        for number, connection in enumerate(connections):
            if number % 3 == 1:
                connection.sendall(HEAD)  # the headers never end
            elif number % 3 == 2:
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")  # the body never comes
        for step in range(20):
            for connection in connections[1::3]:
                connection.sendall(f"X-{step}: a\r\n".encode())
            assert served(held)


@pytest.fixture(scope="module")
def impatient(model: Path) -> Iterator[Running]:
    """A server that waits half a second for a request."""
    limits = Limits(slots=1, context=256, queue=8)
    with serving(Setup(model, dtype="float32"), limits, arrival_s=0.5) as running:
        yield running


@pytest.mark.parametrize(
    "first", [b"", HEAD, HEAD + b"Content-Length: 1000\r\n\r\n{"], ids=["nothing", "half a head", "half a body"]
)
def test_a_request_that_does_not_arrive_is_ended(impatient: Running, first: bytes) -> None:
    assert served(impatient)
    with connect(impatient) as connection:
        began = time.monotonic()
        for byte in [first, *[b"a"] * 4]:  # something comes all the time, never the end
            connection.sendall(byte)
            time.sleep(0.05)
        assert status(connection) == 408
        assert 0.4 < time.monotonic() - began < 5
    assert served(impatient)


def test_the_limit_is_on_requests_only(impatient: Running) -> None:
    body = {"model": impatient.name, "prompt": "the quick", "max_tokens": 240, "temperature": 0}
    with impatient.client() as client:
        for _ in range(2):  # one connection, idle in between for longer than a request may take
            answer = client.post("/v1/completions", json={**body, "max_tokens": 2})
            assert answer.status_code == 200
            time.sleep(0.7)
        assert len(client._transport._pool.connections) == 1  # type: ignore[attr-defined]
        lines = []
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as stream:
            for line in stream.iter_lines():
                lines.append(line)
                if len(lines) < 20:
                    time.sleep(0.05)  # an answer that is read slowly for longer than that
        assert "data: [DONE]" in lines


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("head", [
    HEAD + b"X: " + b"a" * (1 << 20), HEAD + b"X: a\r\n" * 200_000, b"GET /" + b"a" * (1 << 20), b"\x00" * (1 << 20),
    b"\x16\x03\x01\x02\x00\x01" + bytes(600),
    HEAD + b"Content-Length: -1\r\n\r\n", HEAD + b"Content-Length: 9e9\r\n\r\n",
    HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET /%ff%00%0d%0a HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /../../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"GET /v1/models/..%2f..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: localhost\r\n\r\n",
], ids=lambda head: str(head[:24] + head[-24:]))  # fmt: skip
def test_what_is_no_request_is_refused(held: Running, head: bytes) -> None:
    for _ in range(3 * TIMES):
        with connect(held) as connection:
            try:
                connection.sendall(head)
                connection.sendall(b"\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
            except OSError:  # the server has closed already
                continue
            assert status(connection) in (0, 400, 404, 431)


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("body", [
    b'{"a":' * 100_000, b"[" * 1_000_000, b'{"model": "\xff\xfe"}', b'{"model": "\\ud800", "prompt": "a"}',
    b'{"model": ' + b"9" * 1_000_000 + b"}", b'{"prompt": ' + b'"a"' + b"," * 1_000_000, b"\x00" * 4096, b"NaN",
], ids=lambda body: str(body[:24]))  # fmt: skip
def test_a_body_that_is_no_request_is_400(held: Running, body: bytes) -> None:
    with held.client() as client:
        began = time.monotonic()
        response = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
        assert response.status_code in (400, 404)
        assert json.loads(response.content)["error"]["message"]
        assert len(response.content) < 4096
        assert time.monotonic() - began < 10


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("field", ["max_tokens", "n", "seed", "logprobs"])
@pytest.mark.parametrize("value", [10**9, 10**30, -1, 2**63])
def test_huge_numbers_are_bounded_or_refused(held: Running, field: str, value: int) -> None:
    body = {"model": held.name, "prompt": "the quick", "max_tokens": 2, "temperature": 0, field: value}
    with held.client() as client:
        response = client.post("/v1/completions", json=body)
    if (field, value) == ("max_tokens", 10**9) and response.status_code == 200:
        assert response.json()["usage"]["total_tokens"] <= 256
    elif (field, value) in (("seed", 10**9), ("seed", -1)):
        assert response.status_code == 200
    else:
        assert response.status_code == 400
        assert response.json()["error"]["param"] == field


@pytest.mark.usefixtures("level")
def test_ten_thousand_queued_sequences_of_clients_that_leave(held: Running) -> None:
    scheduler, go, step = held.server.active, Event(), held.server.engine.step

    def wait(*arguments: object, **options: object) -> object:
        go.wait(60)
        return step(*arguments, **options)  # type: ignore[arg-type]

    body = json.dumps({"model": held.name, "prompt": "the quick", "max_tokens": 100, "n": 32}).encode()
    request = HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    held.server.engine.step = wait  # type: ignore[method-assign, assignment]
    try:
        with ExitStack() as stack:
            connections = [stack.enter_context(connect(held)) for _ in range(313 * TIMES)]
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda connection: connection.sendall(request), connections))
            end = time.monotonic() + 30
            while scheduler.waiting + scheduler.running < SEQUENCES and time.monotonic() < end:
                time.sleep(0.02)
            assert scheduler.waiting + scheduler.running == SEQUENCES
            # The queue is full: the next is told so, and when to come again.
            with held.client() as client:
                refused = client.post("/v1/completions", json={"model": held.name, "prompt": "x", "n": 32})
            assert refused.status_code == 429
            assert int(refused.headers["Retry-After"]) >= 1
    finally:
        go.set()
        held.server.engine.step = step  # type: ignore[method-assign]

"""`lumoe serve` as a process: it starts, is told to end, and ends well."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import torch
from running import make_model, serving, settled

from lumoe.errors import UserError
from lumoe.moe.serve.last_budget import write_last
from lumoe.moe.serve.run import Setup, load
from lumoe.moe.serve.scheduler import Limits


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from lumoe.cli import main; main()", "serve", "--threads", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"on (http://127\.0\.0\.1:\d+)", line):
            # At once: whoever reads the line can connect.
            httpx.get(f"{found[1]}/health", trust_env=False)
            return found[1]
    raise AssertionError("the server ended without listening")


def test_sigterm_finishes_what_runs_and_exits_with_0(model: Path) -> None:
    server = start("--model", str(model), "--port", "0", "--budget", "80%")
    try:
        url = address(server)
        body = {"model": model.name, "prompt": "the quick", "max_tokens": 200, "temperature": 0, "stream": True,
                "stream_options": {"include_usage": True}}  # fmt: skip
        with (
            httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
            client.stream("POST", "/v1/completions", json=body) as response,
        ):
            lines = response.iter_lines()
            events = [next(lines)]
            server.send_signal(signal.SIGTERM)
            events += [line for line in lines if line]
        assert events[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in events[:-1] if line]
        assert chunks[-2]["choices"][0]["finish_reason"] in ("length", "stop")
        assert chunks[-1]["usage"]["completion_tokens"] == 200 or chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert server.wait(30) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False)
    finally:
        server.kill()
        server.communicate()


def test_shrinking_gives_memory_back_to_the_system(tmp_path: Path) -> None:
    """In a process of its own: what other tests leave behind in this one would count as well."""
    big = make_model(tmp_path / "big", hidden_size=256, intermediate_size=2048)
    server = start("--model", str(big), "--port", "0", "--budget", "100%")
    try:
        process = psutil.Process(server.pid)
        with httpx.Client(base_url=address(server), timeout=60, trust_env=False) as client:
            ask = {"model": big.name, "prompt": "the quick", "max_tokens": 8}
            # A first change and a first answer load what all later ones use.
            for budget in ("40%", "100%"):
                client.put("/v1/budget", json={"budget": budget})
                full = settled(client)
            assert client.post("/v1/completions", json=ask).status_code == 200
            before = process.memory_info().rss
            client.put("/v1/budget", json={"budget": "40%"})
            small = settled(client)
            freed = full["bytes_fast"] - small["bytes_fast"]
            assert freed > 15e6
            assert before - process.memory_info().rss >= 0.9 * freed
            assert client.post("/v1/completions", json=ask).status_code == 200
    finally:
        server.kill()
        server.communicate()


def test_a_killed_server_restarts_with_the_last_budget(model: Path, tmp_path: Path) -> None:
    state = tmp_path / "state" / "budget.json"
    command = ("--model", str(model), "--port", "0", "--budget", "100%", "--state", str(state))
    for expected in (None, "quality"):
        server = start(*command)
        try:
            with httpx.Client(base_url=address(server), timeout=60, trust_env=False) as client:
                found = client.get("/v1/budget").json()
                if expected is None:
                    assert not state.exists()
                    kept = client.put("/v1/budget", json={"budget": "70%", "preference": "quality"}).json()
                    assert kept["budget_bytes"] < found["budget_bytes"]
                    found = kept
                assert (found["budget_bytes"], found["preference"]) == (kept["budget_bytes"], "quality")
        finally:
            server.kill()
            server.communicate()


def test_a_damaged_or_impossible_state_is_named(model: Path, tmp_path: Path) -> None:
    limits = Limits(slots=1, context=64)
    write_last(tmp_path / "state", 1, "throughput")
    with pytest.raises(UserError, match=f"{tmp_path}/state: .*too small"):
        load(Setup(model, state=tmp_path / "state"), limits)
    text = (tmp_path / "state").read_text(encoding="utf-8")
    for content in (text.replace("throughput", "quality"), text[:-10], "", "{}"):
        (tmp_path / "state").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=f"{tmp_path}/state: "):
            load(Setup(model, state=tmp_path / "state"), limits)


def test_only_the_engines_thread_computes_in_parallel(model: Path) -> None:
    limits = Limits(slots=1, context=64, threads=2)
    with serving(Setup(model), limits) as running, running.client() as client:
        seen, step = [], running.server.engine.step

        def noted(*arguments: object, **options: object) -> torch.Tensor:
            seen.append(torch.get_num_threads())
            return step(*arguments, **options)  # type: ignore[arg-type]

        running.server.engine.step = noted  # type: ignore[method-assign, assignment]
        body = {"model": running.name, "prompt": "the quick", "max_tokens": 2}
        assert client.post("/v1/completions", json=body).status_code == 200
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
    assert seen == [2, 2]
    assert torch.get_num_threads() == 1


def test_a_mistake_is_one_sentence_and_exit_code_2(model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        server = start("--model", str(model), "--port", taken)
        _, text = server.communicate(timeout=120)
    assert server.returncode == 2, text
    assert [line for line in text.splitlines() if line.startswith("lumoe:") and taken in line]
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("change", "context", "word"),
    [
        ({"model": Path("/nowhere")}, 64, "/nowhere"),
        ({"budget": "1%"}, 64, "too small"),
        ({"budget": "some"}, 64, "'some'"),
        ({}, 9999, "9999"),
        ({"quantized": Path("/nowhere")}, 64, "/nowhere"),
    ],
)
def test_what_cannot_be_served_is_said(model: Path, change: dict[str, Any], context: int, word: str) -> None:
    with pytest.raises(UserError, match=re.escape(word)):
        load(Setup(**{"model": model, **change}), Limits(slots=1, context=context))


def test_a_model_without_a_tokenizer_is_refused(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        if "token" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(UserError, match="tokenizer"):
        load(Setup(tmp_path), Limits(slots=1, context=64))

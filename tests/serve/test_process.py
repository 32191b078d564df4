"""`lumoe serve` as a process: it starts, is told to end, and ends well."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from lumoe.errors import UserError
from lumoe.moe.serve.app import Limits
from lumoe.moe.serve.run import Setup, load


def start(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from lumoe.cli import main; main()", "serve", "--threads", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"on (http://127\.0\.0\.1:\d+)", line):
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
        server.wait()


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

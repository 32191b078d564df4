"""Servers as processes of their own, and a client light enough not to be what is timed."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lumoe.moe.serve.run import listen

LUMOE = (sys.executable, "-c", "from lumoe.cli import main; main()", "serve")


def free_port() -> int:
    """Return a port of the loopback address that nobody listens on."""
    with listen("127.0.0.1", 0) as probe:
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Answer:
    """One answer as its client saw it; times in seconds from the sending of the request.

    Attributes:
        first_s: until the first text; None if none came.
        finish: why it ended, if the server said so.
    """

    status: int
    first_s: float | None
    seconds: float
    text: str
    finish: str | None
    usage: dict[str, int]


class Served:
    """A server's process, from its start until it is told to end; used with `with`."""

    def __init__(self, command: Sequence[str], port: int, threads: int, patience_s: float = 120.0) -> None:
        """Start `command`, which listens on `port` of the loopback address and computes on `threads` threads."""
        self.port, self._patience_s = port, patience_s
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log, env=environment)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()

    def pause(self) -> None:
        """Take the processor away from it."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Give the processor back."""
        self.process.send_signal(signal.SIGCONT)

    def answers(self, path: str, body: dict[str, Any]) -> None:
        """Wait until it answers a request to the end.

        Raises:
            RuntimeError: it ended, it has not answered in time, or its answer breaks off; says what its log says.
        """
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                answer = self.stream(path, body)
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
                continue
            if answer.status == 200 and (answer.text or answer.finish):
                return
            if answer.status != 503:  # which says that it is still loading
                break
            time.sleep(0.2)
        self._log.seek(0)
        said = self._log.read().decode(errors="replace").strip().splitlines() or [""]
        line = next((line for line in reversed(said) if "Error" in line), said[-1])[:200]
        status = self.process.poll()
        raise RuntimeError(line if status is None else f"ended with status {status}; last line: {line}")

    def stream(self, path: str, body: dict[str, Any]) -> Answer:
        """Stream one answer. Only arrival times are taken while it comes; it is read when it is complete."""
        parts: list[tuple[float, bytes]] = []
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            began = time.perf_counter()
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            while part := response.read1(1 << 16):
                parts.append((time.perf_counter() - began, part))
            ended = time.perf_counter() - began
        return _read(response.status, parts, ended)

    def call(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Return status and answer of a request that is not streamed."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        is_json = (response.getheader("Content-Type") or "").startswith("application/json")
        return response.status, json.loads(text) if is_json else text


def _read(status: int, parts: Sequence[tuple[float, bytes]], ended: float) -> Answer:
    first, text, finish, usage, rest = None, "", None, dict[str, int](), b""
    for at, part in parts:
        *events, rest = (rest + part).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: {"):
                continue
            chunk = json.loads(event.removeprefix(b"data: "))
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices", []):
                content = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                first = at if content and first is None else first
                text += content
                finish = choice.get("finish_reason") or finish
    return Answer(status, first, ended, text, finish, usage)


def lumoe(model: Path, port: int, threads: int, *options: str) -> list[str]:
    """Return the command of this package's server."""
    return [*LUMOE, "--model", str(model), "--port", str(port), "--threads", str(threads), *options]

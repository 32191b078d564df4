"""What a server meets beside plain requests (clients that leave, mistakes, chats, probes), and what it then holds."""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from threading import Event
from typing import Any

import pandas as pd
import psutil
from scipy.stats import linregress
from served import Served


@dataclass(frozen=True)
class Other:
    """One of the other requests: what it was, the status it got and those that are right."""

    kind: str
    status: int
    right: tuple[int, ...]


def disturb(server: Served, model: str, stop: Event, seed: int) -> list[Other]:
    """Send other requests, one after another in a random order, until `stop` is set."""
    choose, done = random.Random(seed), []
    words = {"model": model, "prompt": "Return the", "max_tokens": 8, "temperature": 0}
    chat = {"model": model, "messages": [{"role": "user", "content": "Return the"}], "max_tokens": 8}
    kinds: dict[str, tuple[Callable[[], int], tuple[int, ...]]] = {
        "client that leaves": (lambda: _leave(server, {**words, "max_tokens": 64, "stream": True}), (200,)),
        "chat": (lambda: server.call("POST", "/v1/chat/completions", chat)[0], (200,)),
        "several answers": (lambda: server.call("POST", "/v1/completions", {**words, "n": 3})[0], (200, 429)),
        "unknown model": (lambda: server.call("POST", "/v1/completions", {**words, "model": "x"})[0], (404,)),
        "too many tokens": (lambda: server.call("POST", "/v1/completions", {**words, "max_tokens": 10**9})[0], (400,)),
        "no JSON": (lambda: _raw(server, b"{"), (400,)),
        "no path": (lambda: server.call("GET", "/v1/../etc/passwd")[0], (404,)),
        "budget of nothing": (lambda: server.call("PUT", "/v1/budget", {"budget": "1B"})[0], (400,)),
        "probes": (lambda: max(server.call("GET", path)[0] for path in ("/health", "/metrics", "/v1/state")), (200,)),
    }
    while not stop.is_set():
        kind = choose.choice(sorted(kinds))
        ask, right = kinds[kind]
        done.append(Other(kind, ask(), right))
    return done


def _leave(server: Served, body: dict[str, Any]) -> int:
    """Close the connection after the first part of a stream."""
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read1(64)
        return response.status


def _raw(server: Served, content: bytes) -> int:
    with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)) as connection:
        connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
        return connection.getresponse().status


def watch(server: Served, stop: Event, every_s: float = 0.25) -> pd.DataFrame:
    """Return resident bytes, file descriptors and threads of the server's process over time, until `stop` is set."""
    process, began, rows = psutil.Process(server.process.pid), time.monotonic(), []
    while not stop.wait(every_s):
        rows.append(
            {
                "at_s": time.monotonic() - began,
                "resident_bytes": process.memory_info().rss,
                "files": process.num_fds(),
                "threads": process.num_threads(),
            }
        )
    return pd.DataFrame(rows)


def slope(held: pd.DataFrame, cycle_s: float, from_s: float) -> tuple[float, float]:
    """Return the slope of resident memory in bytes per minute and the half-width of its 95 % interval.

    Memory follows the budget up and down: the line goes through the means of whole cycles of it, which also leaves
    less of what makes neighbouring samples alike.

    Args:
        cycle_s: seconds in which the budget has gone through all its values.
        from_s: cycles that begin before are start-up (allocators and caches filling) and not counted.
    """
    cycle = (held["at_s"] // cycle_s).astype(int)
    means = held[cycle * cycle_s >= from_s].groupby(cycle)[["at_s", "resident_bytes"]].mean().iloc[:-1]
    line = linregress(means["at_s"] / 60, means["resident_bytes"])
    return float(line.slope), float(1.96 * line.stderr)

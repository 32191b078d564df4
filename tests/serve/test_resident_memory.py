"""A server's resident memory: its budget, and a constant beside it whatever the budget is."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from running import make_model

# Stated in docs/serving.md: libraries, and what they keep for each number of tokens.
BESIDE_BYTES = 450_000_000


def resident(process: int) -> int:
    """Bytes of VmRSS: anonymous pages, and pages of files that are mapped, each once."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_resident_memory_is_the_budget_and_a_constant(tmp_path: Path) -> None:
    """A model of 360 MB: at 30 % of it, one that kept everything would exceed the constant by 60 MB and more."""
    make_model(
        tmp_path, hidden_size=512, intermediate_size=1792, num_hidden_layers=8, num_local_experts=8,
        num_attention_heads=8, max_position_embeddings=512, initializer_range=0.02,
    )  # fmt: skip
    program = str(Path(sys.executable).with_name("lumoe"))
    command = [program, "serve", "--model", str(tmp_path), "--port", "0", "--threads", "1", "--budget", "100%"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            url = next(m[0] for line in server.stderr if (m := re.search(r"http://\S+:\d+", line)))
            with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
                for budget in ("100%", "60%", "30%"):
                    state = client.put("/v1/budget", json={"budget": budget}).json()
                    with ThreadPoolExecutor(4) as pool:
                        for status in pool.map(lambda size: ask(client, size), (8, 40, 200, 300) * 2):
                            assert status == 200
                    deadline = time.monotonic() + 30
                    while not client.get("/v1/budget").json()["settled"]:
                        assert time.monotonic() < deadline
                        time.sleep(0.05)
                    assert resident(server.pid) <= state["budget_bytes"] + BESIDE_BYTES
        finally:
            server.terminate()
            server.communicate(timeout=60)


def ask(client: httpx.Client, size: int) -> int:
    """Send a prompt of `size` tokens; return the answer's status."""
    body = {"model": "x", "prompt": [3 + at % 300 for at in range(size)], "max_tokens": 20, "n": 2, "ignore_eos": True}
    name = client.get("/v1/models").json()["data"][0]["id"]
    return client.post("/v1/completions", json={**body, "model": name}).status_code

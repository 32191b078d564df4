"""A small random Mixtral, and a server of it on a free port of the loopback address."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import torch
import uvicorn
from transformers import MixtralConfig, MixtralForCausalLM

from lumoe.moe.checkpoint.tokenizer import train_tokenizer
from lumoe.moe.serve.app import Server, create_app
from lumoe.moe.serve.arrival import arriving_within
from lumoe.moe.serve.run import Setup, listen, load
from lumoe.moe.serve.scheduler import Limits

VOCABULARY = 320
TEXTS = ["the quick brown fox jumps over the lazy dog", "a stitch in time saves nine", "Zoë pays 5 € for a naïve 🦊"]


def make_model(folder: Path, **changes: object) -> Path:
    """Write weights and a tokenizer whose vocabulary has every byte."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "max_position_embeddings": 256,
        "rope_theta": 1e4,
        # Wide weights: no two tokens are equally likely, and neither are the answers at 16 and at 8 bits equal.
        "initializer_range": 0.2,
    }
    MixtralForCausalLM(MixtralConfig(**{**shape, **changes})).to(torch.bfloat16).save_pretrained(folder)
    train_tokenizer(TEXTS * 50, VOCABULARY, 256).save_pretrained(folder)
    return folder


class Running:
    """A server and where it listens."""

    def __init__(self, server: Server, url: str) -> None:
        self.server, self.url = server, url
        self.name = server.name

    def client(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)  # type: ignore[arg-type]


@contextmanager
def serving(setup: Setup, limits: Limits | None = None, arrival_s: float = 60) -> Iterator[Running]:
    """Serve a model on a free port from a thread of this process."""
    with serving_on(load(setup, limits or Limits(slots=8, context=256, queue=128)), arrival_s) as running:
        yield running


@contextmanager
def serving_on(server: Server, arrival_s: float = 60, origins: Sequence[str] = ()) -> Iterator[Running]:
    """Serve what is loaded already."""
    listener = listen("127.0.0.1", 0)
    app = create_app(server, hosts=["127.0.0.1", "localhost"], origins=origins)
    config = uvicorn.Config(app, log_level="error", access_log=False, http=arriving_within(arrival_s))
    http = uvicorn.Server(config)
    thread = Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not http.started and thread.is_alive():
        thread.join(0.01)
    try:
        yield Running(server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        http.should_exit = True
        thread.join(30)


def settled(client: httpx.Client) -> dict[str, Any]:
    """Wait until the plan in force is wholly loaded and return the state of the budget."""
    for _ in range(1000):
        state: dict[str, Any] = client.get("/v1/budget").json()
        if state["settled"]:
            return state
        time.sleep(0.01)
    raise AssertionError("the plan never settled")

"""The server as a process: load, listen, drain, end."""

from __future__ import annotations

import logging
import re
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
import uvicorn

from lumoe.errors import UserError, about
from lumoe.machine import available_bytes
from lumoe.moe.architectures.read import read_architecture
from lumoe.moe.checkpoint.chat_template import chat_tokenizer
from lumoe.moe.checkpoint.end_tokens import end_tokens
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.kv_pool import KVPool
from lumoe.moe.engine.loader import PlanChange
from lumoe.moe.engine.open import EngineConfig, OpenedModel, open_model
from lumoe.moe.engine.planned import planner_for
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.planning.budget import parse_budget
from lumoe.moe.planning.caching import CachePolicy, Caching
from lumoe.moe.planning.plan import FULL_BITS, Plan, Preference
from lumoe.moe.serve.app import Server, create_app
from lumoe.moe.serve.arrival import arriving_within
from lumoe.moe.serve.follower import SPARE_BYTES, allowed
from lumoe.moe.serve.governor import Governor
from lumoe.moe.serve.last_budget import GROUP, read_last
from lumoe.moe.serve.metrics import Metrics
from lumoe.moe.serve.prompts import Prompts
from lumoe.moe.serve.scheduler import Limits

log = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Setup:
    """What `lumoe serve` was asked for.

    Attributes:
        budget: of the fast tier, as text; None is the whole model at 16 bits, or what free memory holds of it.
        policy: what happens to a missed expert after use, see `EngineConfig`.
        name: what clients call the model; the folder's name by default.
        measurements: folder of machine.json, perplexity.csv and sensitivity.csv; results/moe/NAME by default.
        seed: of the order in which experts give up precision, where sensitivities are not known.
        state: file that keeps the budget last set over HTTP; it goes before `budget` and `preference`.
        device: cpu, cuda or cuda:N.
        kv_bits: of keys and values, 16 or 8.
        cors_origins: sites whose pages may read the answers; `*` is any.
    """

    model: Path
    quantized: Path | None = None
    budget: str | None = None
    preference: Preference = "throughput"
    name: str | None = None
    api_key: str | None = None
    dtype: str = "bfloat16"
    policy: CachePolicy | Caching = "static"
    seed: int = 0
    state: Path | None = None
    device: str = "cpu"
    measurements: Path | None = None
    cors_origins: tuple[str, ...] = ()
    kv_bits: int = FULL_BITS


def load(setup: Setup, limits: Limits) -> Server:
    """Open the model; experts come into the fast tier in the background, until then they are misses.

    Raises:
        UserError: the model, the quantised experts or the budget are not usable.
    """
    architecture = read_architecture(setup.model)
    tokenizer = chat_tokenizer(setup.model)
    architecture.check_context(limits.context, setup.model)
    dtype = getattr(torch, setup.dtype)
    config = EngineConfig(
        setup.device,
        dtype,
        setup.policy,
        # Every set of slots that decode together would be recorded for itself: there are too many.
        recorded=False,
        beside_bytes=limits.slots * architecture.kv_bytes(limits.context, dtype.itemsize),
        kv_bits=setup.kv_bits,
    )
    model = open_model(setup.model, setup.quantized, config)
    planner = planner_for(model, setup.model, setup.quantized, setup.measurements, setup.seed)
    engine = Engine(model, Plan.uniform(*model.plan_shape, resident=False))
    metrics = Metrics()
    cache = engine.cache(limits.slots, limits.context)
    shared = cache if isinstance(cache, KVCache) and cache.states is None and limits.share_prefixes else None
    if isinstance(cache, KVCache) and cache.states is not None and limits.share_prefixes:
        log.info("prefixes are not shared: their state is not kept for a next sequence")
    pool = KVPool(cache, shared)
    governor = Governor(engine, planner, setup.preference, pool, _told_once(model, metrics.changed))
    metrics.watch(governor)
    budget, preference = _within_memory(governor, setup.budget), setup.preference
    last = read_last(setup.state) if setup.state else None
    with about(setup.state if setup.state and last else ""):
        if last:
            budget, preference = _within_memory(governor, str(last[0])), last[1]
        governor.follows = (str(last[0]) if last else setup.budget) == GROUP
        governor.set_budget(budget, preference)
    _say_what_is_in_force(governor, setup, limits)
    prompts = Prompts(tokenizer, architecture.vocab_size, limits.context, end_tokens(setup.model, tokenizer))
    name = setup.name or setup.model.resolve().name
    return Server(prompts, governor, metrics, name, limits, setup.api_key, setup.state)


def _told_once(model: OpenedModel, on_change: Callable[[PlanChange], None]) -> Callable[[PlanChange], None]:
    """Return `on_change` that logs what opening the model cost, once its first plan's experts are all there."""
    told = False

    def changed(change: PlanChange) -> None:
        nonlocal told
        on_change(change)
        if not told:
            told = True
            log.info("%s", str(model.opening))  # as it is now: handlers may format later

    return changed


def _say_what_is_in_force(governor: Governor, setup: Setup, limits: Limits) -> None:
    """Log precisions, kernels, tier, policy, keys and values, with the bytes that each takes of the budget."""
    engine, cache = governor.engine, governor.pool.cache
    memory, plan = engine.memory, engine.plan
    counts = {int(bits): int((plan.bits == bits).sum()) for bits in np.unique(plan.bits)}
    source = engine.model.source
    precisions = {bits: f"at {bits} bits" for bits in counts}
    if source.stored_as:
        precisions[FULL_BITS] = f"as {source.stored_as}"
    experts = ", ".join(
        f"{count} experts {precisions[bits]} ({source.kernel(bits)}, {memory.expert[bits]} bytes each)"
        for bits, count in counts.items()
    )
    weights = engine.model.bytes_needed(plan)
    log.info("%s on %s, %s; residents: %s", experts, setup.device, setup.dtype, engine.store.caching)
    log.info(
        "%d of %d experts resident: %d bytes of weights (%d outside the experts) and swap buffers",
        int(plan.resident.sum()), plan.resident.size, weights, engine.decoder.nbytes,
    )  # fmt: skip
    log.info(
        "keys and values at %d bits: up to %d bytes in blocks of %d, context %d, prefixes %s",
        setup.kv_bits, cache.limit * cache.block_bytes, cache.block_bytes, limits.context,
        "shared" if limits.share_prefixes else "not shared",
    )  # fmt: skip
    if weights + cache.limit * cache.block_bytes > governor.budget_bytes:
        raise RuntimeError("what is in force takes more than the budget")


def _within_memory(governor: Governor, asked: str | None) -> int:
    """Return the budget asked for; without one the whole model, or as much of it as this machine's free memory holds.

    Raises:
        UserError: it is not an amount of memory, or nothing was asked for and too little memory is free for any plan.
    """
    engine, most = governor.engine, governor.most_bytes
    if asked == GROUP:
        return max(min(allowed(governor, SPARE_BYTES), most), governor.minimum_bytes)
    budget = parse_budget(asked, governor.whole_bytes) if asked else most
    if engine.model.most_bytes is not None:
        return budget  # a GPU's memory is known, and host memory is where experts rest
    # What the engine holds already is no longer free, but within the budget.
    holds = available_bytes() + engine.bytes_fast - SPARE_BYTES
    if min(budget, most) <= holds:
        return budget
    if asked:
        log.warning(
            "a budget of %d bytes, but memory holds no more than %d: the system may swap or kill", budget, holds
        )
        return budget
    if holds < governor.minimum_bytes:
        raise UserError(
            f"memory: {max(holds, 0)} bytes are free for the model, the least that it runs in is "
            f"{governor.minimum_bytes}; free memory, or give a shorter --context"
        )
    log.warning("the model takes %d bytes and memory holds %d: planning for that (--budget sets another)", most, holds)
    return holds


def serve(setup: Setup, limits: Limits, host: str, port: int, drain_s: int, arrival_s: float) -> None:
    """Serve until SIGTERM or SIGINT: then refuse new connections, finish what runs for up to `drain_s`, and return.

    Args:
        arrival_s: seconds within which a request must have arrived.

    Raises:
        UserError: the model cannot be loaded, the address is taken, or an origin is none.
    """
    origins = [origin_of(given) for given in setup.cors_origins]
    listener = listen(host, port)
    if host not in LOOPBACK and not setup.api_key:
        log.warning("whoever can reach %s may use this server and change its budget: set --api-key", host)
    server = load(setup, limits)
    address, bound = listener.getsockname()[:2]
    app = create_app(server, hosts=[*LOOPBACK, "[::1]"] if host in LOOPBACK else None, origins=origins)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=drain_s, timeout_keep_alive=30,
        server_header=False, http=arriving_within(arrival_s),
    )  # fmt: skip
    # uvicorn handles the signal, drains, and then raises it again with the handler that it found: this one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _ended)
    # Who reads the line below may connect at once: the kernel keeps the connection until uvicorn takes it.
    listener.listen(config.backlog)
    log.info(
        "%s on http://%s:%d with a budget of %d bytes",
        server.name, f"[{address}]" if ":" in address else address, bound, server.governor.budget_bytes,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listener])


def origin_of(given: str) -> str:
    """Return an origin as browsers send it.

    Raises:
        UserError: it is none.
    """
    origin = given.removesuffix("/").lower()
    if given != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#@\s]+", origin):
        raise UserError(f"--cors-origin {given}: give scheme and host, such as https://chat.example:8080, or *")
    return origin


def listen(host: str, port: int) -> socket.socket:
    """Bind the address; port 0 takes a free one.

    Raises:
        UserError: it cannot be bound.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UserError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --host or --port") from None
    return listener


def _ended(number: int, frame: FrameType | None) -> None:
    log.info("stopped by signal %d", number)

"""The engine: a checkpoint, its quantised experts, a plan and a budget in; logits and tokens out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lumoe.errors import UserError
from lumoe.moe.engine.fair_lock import FairLock
from lumoe.moe.engine.open import EngineConfig, Folders, OpenedModel, open_model
from lumoe.moe.model.base import Cache
from lumoe.moe.model.moe_layer import Observer
from lumoe.moe.offload.store import ExpertStore
from lumoe.moe.planning.plan import Memory, Plan

log = logging.getLogger(__name__)
Tokens = Sequence[int] | Sequence[Sequence[int]] | torch.Tensor


class Reconfiguration(NamedTuple):
    """Times of a change of plan, in seconds from the asking.

    Attributes:
        freed_s: until the new precisions were in force and the memory given up was back with the system.
        settled_s: until the last resident expert of the new plan was there.
    """

    freed_s: float
    settled_s: float


class Engine:
    """A model that answers under a byte budget, and whose plan can change while it does."""

    def __init__(self, model: OpenedModel, plan: Plan | None = None, budget_bytes: int | None = None) -> None:
        """Load what the plan makes resident; nothing else is ever in memory as a whole.

        Args:
            plan: precision and tier of every expert; by default all at 16 bits and resident.
            budget_bytes: bytes of the fast tier, for weights outside the experts, resident experts and swap buffers;
                by default what the plan needs, on a GPU with as many residents as its memory holds.

        Raises:
            UserError: the plan does not fit the model or the budget.
        """
        self.model, self.decoder = model, model.decoder
        config, left = model.config, model.left_for_experts(budget_bytes)
        plan = model.fitted(plan or Plan.uniform(*model.plan_shape), budget_bytes)
        self.store = ExpertStore(
            model.source, plan, left, config.policy, config.swap_buffers, model.tier, model.frequencies
        )
        self.decoder.attach(self.store)
        # Held during each forward pass: plans change between passes, never within one.
        self._step = FairLock()
        # Held for the read of one expert at a time and granted in turn: a change waits for one read at most.
        self._loading = FairLock()

    @classmethod
    def load(
        cls,
        model: str | Path,
        quantized: Folders = None,
        plan: Plan | None = None,
        budget_bytes: int | None = None,
        **settings: Any,
    ) -> Engine:
        """Open a checkpoint and start an engine on it: `open_model` and `Engine` in one.

        Args:
            model: folder of a checkpoint, or a GGUF file.
            quantized: folder or folders that `lumoe moe quantize` wrote.
            plan, budget_bytes: see `Engine`.
            settings: fields of `EngineConfig`, such as ``device="cuda"`` or ``dtype=torch.float32``.

        Raises:
            UserError: the device is absent, a file is missing or damaged, or the plan does not fit the model or the
                budget.
        """
        engine = cls(open_model(model, quantized, EngineConfig(**settings)), plan, budget_bytes)
        log.info("%s", str(engine.model.opening))  # as it is now: handlers may format later
        return engine

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""
        return self.decoder.device

    def finish(self) -> None:
        """Wait until everything that was begun on the device is done."""
        self.store.tier.finish()

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.store.plan

    @property
    def bytes_fast(self) -> int:
        """Bytes in the fast tier now: weights outside the experts, resident experts, swap buffers."""
        return self.decoder.nbytes + self.store.bytes_fast

    @property
    def budget_bytes(self) -> int:
        """Bytes that the fast tier may take under the budget in force."""
        return self.decoder.nbytes + self.store.budget_bytes

    @property
    def memory(self) -> Memory:
        """What the parts of this model really take, for planning."""
        return self.model.memory

    def cache(self, sequences: int, capacity: int) -> Cache:
        """Return room for `sequences` sequences of up to `capacity` tokens.

        Raises:
            UserError: the model was not made for as many tokens.
        """
        self.decoder.architecture.check_context(capacity)
        return self.decoder.cache(sequences, capacity, self.model.config.kv_bits)

    @torch.inference_mode()
    def step(
        self, tokens: torch.Tensor, cache: Cache, slots: list[int] | None = None, last_only: bool = True
    ) -> torch.Tensor:
        """Run new tokens `[sequences, tokens]` of the cache's `slots` under one plan; return logits.

        Prefill and decode are the same call; sequences may join and leave between calls.
        """
        slots = list(range(tokens.shape[0])) if slots is None else slots
        longest = max(cache.lengths[slot] for slot in slots) + tokens.shape[1]
        if longest > cache.capacity:
            raise UserError(f"a sequence of {longest} tokens does not fit a cache for {cache.capacity}")
        with self._step:
            return self.decoder.forward(tokens, cache, slots, last_only)

    def logits(self, ids: Tokens) -> torch.Tensor:
        """Return logits `[sequences, tokens, vocabulary]` of sequences as long, or `[tokens, vocabulary]` of one."""
        tokens, single = self._tokens(ids)
        result = self.step(tokens, self.cache(*tokens.shape), last_only=False)
        return result[0] if single else result

    def generate(self, ids: Tokens, new_tokens: int) -> torch.Tensor:
        """Return the `new_tokens` likeliest next tokens, one after another, of one sequence or of equally long ones."""
        return torch.stack(list(self.stream(ids, new_tokens)), dim=-1)

    def stream(self, ids: Tokens, new_tokens: int) -> Iterator[torch.Tensor]:
        """Yield the likeliest next token as soon as it is known: int64 `[]` of one sequence, `[B]` of several."""
        tokens, single = self._tokens(ids)
        if new_tokens < 1:
            raise UserError(f"cannot generate {new_tokens} tokens; ask for at least 1")
        cache = self.cache(tokens.shape[0], tokens.shape[1] + new_tokens)
        for _ in range(new_tokens):
            # The same as argmax, and three times as fast in bfloat16.
            tokens = self.step(tokens, cache)[:, -1].max(-1, keepdim=True).indices
            yield tokens[0, 0] if single else tokens[:, 0]

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer(layer, chosen)` the experts that each token is routed to."""
        self.decoder.observe(observer)

    def begin_change(self, plan: Plan, budget_bytes: int | None = None) -> Plan:
        """Put `plan` into force between two forward passes; return it as it is in force.

        The new precisions hold from here on, and memory that the plan gives up is freed. `load_next` then reads in
        what it adds, beside running passes; until an expert is there it is a miss. At no instant are more bytes held
        than the larger of the two budgets nor, once this returns, more than the new one.

        Args:
            budget_bytes: by default what the plan needs, on a GPU with as many residents as its memory holds.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        left, fitted = self.model.left_for_experts(budget_bytes), self.model.fitted(plan, budget_bytes)
        with self._loading, self._step:
            self.store.switch(fitted, left)
        return fitted

    def load_next(self) -> bool:
        """Bring in one more of the plan's residents; return whether there was one left. Any thread may call it."""
        with self._loading:
            return self.store.load_next()

    def reconfigure(self, plan: Plan, budget_bytes: int | None = None) -> Reconfiguration:
        """Change to `plan` and load what it adds, while the engine may be running in other threads.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        began = time.perf_counter()
        self.begin_change(plan, budget_bytes)
        freed_s = time.perf_counter() - began
        while self.load_next():
            pass
        return Reconfiguration(freed_s, time.perf_counter() - began)

    def metrics(self) -> dict[str, Any]:
        """Return counters and bytes: may be called at any time from any thread."""
        counters, plan = self.store.counters, self.plan
        held = self.store.resident()
        return {
            "hits": counters.hits,
            "misses": counters.misses,
            "misses_in_place": counters.in_place,
            "guessed": counters.guessed,
            "guessed_right": counters.guessed_right,
            "bytes_moved": counters.bytes_moved,
            "wait_s": counters.wait_s,
            "bytes_fast": self.bytes_fast,
            "bytes_non_expert": self.decoder.nbytes,
            "resident_experts": int(held.sum()),
            "experts_by_bits": {int(b): int((plan.bits == b).sum()) for b in np.unique(plan.bits)},
        }

    def _tokens(self, ids: Tokens) -> tuple[torch.Tensor, bool]:
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        single = tokens.ndim == 1
        tokens = tokens.unsqueeze(0) if single else tokens
        vocabulary = self.decoder.architecture.vocab_size
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise UserError("give at least one token, as a list of ids or as equally long lists")
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocabulary:
            raise UserError(f"token ids must lie in 0..{vocabulary - 1}")
        return tokens, single

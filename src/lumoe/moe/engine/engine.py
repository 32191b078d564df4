"""The engine: a checkpoint, its quantised experts, a plan and a budget in; logits and tokens out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.fair_lock import Turnstile
from lumoe.moe.model.attention import KVCache
from lumoe.moe.model.base import Decoding
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.moe_layer import Observer
from lumoe.moe.offload.file_experts import ExpertSource
from lumoe.moe.offload.storage import spill_folder
from lumoe.moe.offload.store import SWAP_BUFFERS, ExpertStore, Policy
from lumoe.moe.planning.plan import FULL_BITS, Memory, Plan
from lumoe.moe.quantization.folder import QuantizedExperts

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

    def __init__(self, decoder: Decoding, store: ExpertStore) -> None:
        self.decoder, self.store = decoder, store
        decoder.attach(store)
        # Held during each forward pass: plans change between passes, never within one.
        self._step = Turnstile()

    @classmethod
    def load(
        cls,
        model: str | Path,
        quantized: str | Path | Sequence[str | Path] | None = None,
        plan: Plan | None = None,
        budget_bytes: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        policy: Policy = "static",
        swap_buffers: int = SWAP_BUFFERS,
        spill: str | Path | None = None,
        native: bool = True,
        non_expert_bits: int = FULL_BITS,
    ) -> Engine:
        """Open a checkpoint and load what the plan makes resident; nothing else is ever in memory as a whole.

        Args:
            model: folder of a Mixtral checkpoint.
            quantized: folder or folders that `lumoe moe quantize` wrote.
            plan: precision and tier of every expert; by default all at 16 bits and resident.
            budget_bytes: bytes of the fast tier, for weights outside the experts, resident experts and swap buffers;
                by default what the plan needs.
            dtype: type of the activations; float32 is for reference runs and expands quantised weights.
            policy: what happens to a missed expert after use, see `ExpertStore`.
            spill: folder for a nameless file of experts in their kernel's layout; by default where the experts are.
            native: run on this package's own kernels where they can be compiled.
            non_expert_bits: 16, or 4 to round attention's and the vocabulary's projections to nearest.

        Raises:
            UserError: a file is missing or damaged, or the plan does not fit the model or the budget.
        """
        checkpoint = Checkpoint(model)
        folders = [quantized] if isinstance(quantized, str | Path) else list(quantized or [])
        experts = [QuantizedExperts(folder) for folder in folders]
        source = ExpertSource(checkpoint, experts, dtype, spill_folder(spill, [*folders, model]), native)
        plan = plan or Plan.uniform(*checkpoint.architecture.plan_shape)
        decoder = Decoder(checkpoint, dtype, non_expert_bits, native)
        left = left_for_experts(budget_bytes, decoder)
        return cls(decoder, ExpertStore(source, plan, left, policy, swap_buffers))

    @property
    def device(self) -> torch.device:
        """Where the engine computes."""
        return self.decoder.device

    def finish(self) -> None:
        """Wait until everything that was begun on the device is done."""

    @property
    def plan(self) -> Plan:
        """The plan in force."""
        return self.store.plan

    @property
    def bytes_fast(self) -> int:
        """Bytes in the fast tier now: weights outside the experts, resident experts, swap buffers."""
        return self.decoder.nbytes + self.store.bytes_fast

    @property
    def most_bytes(self) -> int | None:
        """Bytes of weights that the fast tier can hold at most; None where nothing but the budget limits them."""
        return None

    def check_budget(self, budget_bytes: int | None) -> None:
        """Raise UserError if the fast tier cannot hold what a budget allows."""
        if budget_bytes is not None and self.most_bytes is not None and budget_bytes > self.most_bytes:
            raise UserError(
                f"a budget of {budget_bytes} bytes exceeds the {self.most_bytes} that {self.device} has for weights"
            )

    @property
    def memory(self) -> Memory:
        """What the parts of this model really take, for planning."""
        source = self.store.source
        sizes = {bits: source.nbytes(bits) for bits in source.precisions}
        return Memory(sizes, self.decoder.nbytes, self.store.swap_buffers * max(sizes.values()))

    def cache(self, sequences: int, capacity: int) -> KVCache:
        """Return room for `sequences` sequences of up to `capacity` tokens."""
        cache: KVCache = self.decoder.cache(sequences, capacity)
        return cache

    @torch.inference_mode()
    def step(
        self, tokens: torch.Tensor, cache: KVCache, slots: list[int] | None = None, last_only: bool = True
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
            tokens = self.step(tokens, cache)[:, -1].argmax(-1, keepdim=True)
            yield tokens[0, 0] if single else tokens[:, 0]

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer(layer, chosen)` the experts that each token is routed to."""
        self.decoder.observe(observer)

    def reconfigure(self, plan: Plan, budget_bytes: int | None = None) -> Reconfiguration:
        """Change to `plan` while the engine may be running in other threads; return the times that it took.

        Between two forward passes the new precisions take force and memory that the plan gives up is freed; the experts
        that it adds are then read in beside the running passes. At no instant are more bytes held than the larger of
        the two budgets, nor, once memory is freed, more than the new one.

        Raises:
            UserError: the plan does not fit the model or the budget; nothing has changed then.
        """
        began = time.perf_counter()
        left = left_for_experts(budget_bytes, self.decoder)
        with self._step:
            self.store.switch(plan, left)
        freed_s = time.perf_counter() - began
        while self.store.load_next():
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


def left_for_experts(budget_bytes: int | None, decoder: Decoding) -> int | None:
    """Return what a budget leaves beside the weights outside the experts; None where there is no budget.

    Raises:
        UserError: it does not even hold those.
    """
    if budget_bytes is None:
        return None
    if budget_bytes < decoder.nbytes:
        raise UserError(
            f"a budget of {budget_bytes} bytes does not hold the {decoder.nbytes} bytes outside the experts"
        )
    return budget_bytes - decoder.nbytes

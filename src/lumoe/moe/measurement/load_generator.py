"""A stand-in for users: generates from prompt after prompt on a thread of its own, and counts."""

from __future__ import annotations

import threading

import torch

from lumoe.moe.engine.engine import Engine


class LoadGenerator:
    """Requests one after another at batch 1, the likeliest token each time.

    Attributes:
        tokens: new tokens so far.
        failed: requests that were broken off.
        fault: what the engine raised, if it did.
    """

    def __init__(self, engine: Engine, prompts: torch.Tensor, new_tokens: int) -> None:
        """Start to generate `new_tokens` after each of `prompts` (int64 `[count, tokens]`), in turn and for ever."""
        self.tokens, self.failed = 0, 0
        self.fault: Exception | None = None
        self._engine, self._prompts, self._new_tokens = engine, prompts, new_tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lumoe-workload", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Break off after the running step; a request that has begun counts as failed."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for prompt in self._prompts:
                    self._generate(prompt.unsqueeze(0))
        except Exception as error:
            self.fault = error

    def _generate(self, step: torch.Tensor) -> None:
        cache = self._engine.cache(1, step.shape[1] + self._new_tokens)
        for made in range(self._new_tokens):
            if self._stop.is_set():
                self.failed += made > 0
                return
            step = self._engine.step(step, cache)[:, -1].argmax(-1, keepdim=True)
            self.tokens += 1

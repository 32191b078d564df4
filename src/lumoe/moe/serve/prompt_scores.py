"""Log-probabilities of the tokens of a prompt, taken while it is fed."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from lumoe.moe.serve.sampling import SampledToken, report

# Of a prompt: their log-probabilities are float32 over the whole vocabulary, and a piece of a prompt may be long.
POSITIONS_AT_ONCE = 64


class PromptScores:
    """What the tokens of one prompt are worth, each after those before it. Sequences of one prompt may share it.

    Attributes:
        found: the prompt's first tokens with their log-probabilities; of the very first nothing is known but itself.
    """

    def __init__(self, prompt: Sequence[int], top: int) -> None:
        """Begin with nothing known.

        Args:
            top: how many of the most likely tokens are told in the place of each.
        """
        self._prompt, self._top = prompt, top
        self.found = [SampledToken(prompt[0], None)]

    @property
    def complete(self) -> bool:
        """Whether all tokens are known."""
        return len(self.found) == len(self._prompt)

    def take(self, logits: torch.Tensor, begin: int) -> None:
        """Read what is not known yet off the logits `[tokens, vocabulary]` of the tokens from position `begin` on.

        Raises:
            FloatingPointError: a log-probability is not finite.
        """
        # The token at a position says what comes next.
        end = min(begin + len(logits), len(self._prompt) - 1)
        while (at := len(self.found) - 1) < end:
            until = min(at + POSITIONS_AT_ONCE, end)
            tokens = torch.tensor(self._prompt[at + 1 : until + 1], device=logits.device)
            scored = report(logits[at - begin : until - begin], tokens, [self._top] * (until - at))
            # One that is no number makes all of its row so.
            if not all(isfinite(one.logprob or 0.0) for one in scored):
                raise FloatingPointError("the model's logits are not finite")
            self.found += scored

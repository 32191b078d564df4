"""Training sequences: documents in a new order every epoch, joined, tokenised and cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lumoe.moe.checkpoint.tokenizer import END_OF_TEXT, encode


def joined(documents: Sequence[str], order: Sequence[int]) -> str:
    """Join documents in an order, by turns with a blank line and with the end-of-text token.

    Perplexity is measured on documents joined by blank lines, generation has to know where to stop: both occur.
    """
    ends = ("\n\n", END_OF_TEXT)
    return "".join(documents[index] + ends[place % 2] for place, index in enumerate(order))


def epoch_tokens(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str], seed: int, epoch: int) -> Tensor:
    """Return the token stream of one epoch, [tokens]; it depends on the documents, the seed and the epoch alone."""
    order = np.random.default_rng([seed, epoch]).permutation(len(documents)).tolist()
    return torch.tensor(encode(tokenizer, joined(documents, order)), dtype=torch.long)


def batches(
    tokenizer: PreTrainedTokenizerFast,
    documents: Sequence[str],
    *,
    sequence: int,
    batch: int,
    seed: int,
    skip: int = 0,
) -> Iterator[Tensor]:
    """Yield batches [batch, sequence + 1] for ever, after `skip` batches: one token more than is predicted.

    Args:
        skip: batches already used, when training resumes.
    """
    epoch = 0
    while True:
        tokens = epoch_tokens(tokenizer, documents, seed, epoch)
        sequences = (len(tokens) - 1) // sequence
        per_epoch = sequences // batch
        if per_epoch == 0:
            raise ValueError(f"an epoch of {len(tokens)} tokens is less than one batch of {batch} x {sequence}")
        if skip >= per_epoch:
            skip -= per_epoch
        else:
            inputs = tokens.unfold(0, sequence + 1, sequence)
            order = np.random.default_rng([seed, epoch, 1]).permutation(sequences)
            for step in range(skip, per_epoch):
                yield inputs[torch.from_numpy(order[step * batch : (step + 1) * batch])]
            skip = 0
        epoch += 1

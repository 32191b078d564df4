"""Sequences drawn from corpora: for calibration, for prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from lumoe.errors import UserError
from lumoe.moe.checkpoint.tokenize import tokenize
from lumoe.moe.corpora.corpus import read_documents


def draw_sequences(
    model: str | Path, corpora: Sequence[str | Path], tokens: int, sequence: int, seed: int, split: str = "train"
) -> torch.Tensor:
    """Return int64 `[sequences, sequence]` drawn in equal parts from one split of the corpora.

    Raises:
        UserError: a corpus is missing, or there is less text than asked for.
    """
    generator = torch.Generator().manual_seed(seed)
    share = -(-tokens // (sequence * len(corpora)))
    picked = []
    for folder in corpora:
        documents = read_documents(folder, split)
        order = torch.randperm(len(documents), generator=generator).tolist()
        # Tokenise no more text than needed: a token is at least one character and rarely more than eight.
        text, needed = "", 8 * share * sequence
        for index in order:
            text += documents[index] + "\n\n"
            if len(text) >= needed:
                break
        ids = tokenize(model, text)[0]
        if len(ids) < share * sequence:
            raise UserError(f"{folder}: {len(ids)} tokens of {split} text, but {share * sequence} are asked for")
        picked.append(torch.tensor(ids[: share * sequence]).view(share, sequence))
    return torch.cat(picked)[: -(-tokens // sequence)]


def held_out_prompts(
    model: str | Path, corpora: Sequence[str | Path], tokens: int, count: int, seed: int
) -> torch.Tensor:
    """Return `count` prompts int64 `[count, tokens]`: the beginnings of documents of the corpora's test splits.

    Raises:
        UserError: a corpus is missing, or no document is long enough.
    """
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = []
    documents = [text for folder in corpora for text in read_documents(folder, "test")]
    for index in torch.randperm(len(documents), generator=generator).tolist():
        # A token rarely has more than sixteen characters; what is cut off is not needed.
        ids = tokenize(model, documents[index][: 16 * tokens])[0]
        if len(ids) >= tokens:
            prompts.append(ids[:tokens])
        if len(prompts) == count:
            break
    if not prompts:
        raise UserError(f"{', '.join(map(str, corpora))}: no test document has {tokens} tokens")
    return torch.tensor(prompts)

"""What each expert sees: calibration text walked through the model layer by layer, one expert in memory at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe.attention import KVCache, Rotary, Window
from lumoe.moe.checkpoint import Checkpoint
from lumoe.moe.corpora import read_documents
from lumoe.moe.layer import route
from lumoe.moe.model import Decoder, rms_norm
from lumoe.moe.perplexity import tokenize

_SEQUENCES_AT_ONCE = 16


@dataclass(frozen=True)
class LayerInputs:
    """What reaches one layer's experts.

    Attributes:
        hidden: float32 `[tokens, hidden]`, after the norm.
        weights, chosen: the router's weights and experts, `[tokens, k]`.
    """

    layer: int
    hidden: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the hidden states `[n, hidden]` and router weights `[n]` of the tokens routed to `expert`."""
        token, slot = torch.where(self.chosen == expert)
        return self.hidden[token], self.weights[token, slot]


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


def fingerprint(tokens: torch.Tensor) -> str:
    """Return a hash of the calibration tokens."""
    return hashlib.sha256(tokens.numpy().tobytes()).hexdigest()[:16]


@torch.inference_mode()
def walk(checkpoint: Checkpoint, tokens: torch.Tensor) -> Iterator[LayerInputs]:
    """Yield each layer's expert inputs in turn; all experts run at the checkpoint's precision, computed in float32.

    Memory: the weights outside the experts, one expert, and the hidden states of all tokens.
    """
    decoder = Decoder(checkpoint, torch.float32)
    a = checkpoint.architecture
    rotary = Rotary(a.head_width, a.rope_theta, torch.float32)
    hidden = functional.embedding(tokens, decoder.embedding)
    for index, (before, attention, between, gate) in enumerate(decoder.layers):
        for begin in range(0, len(hidden), _SEQUENCES_AT_ONCE):
            part = hidden[begin : begin + _SEQUENCES_AT_ONCE]
            # Only this layer's pages of the fresh cache are ever touched.
            cache = KVCache(a, len(part), part.shape[1], torch.float32)
            window = Window(cache, list(range(len(part))), part.shape[1], rotary, a.sliding_window)
            part += attention(rms_norm(part, before, a.rms_norm_eps), cache, window)
        normed = rms_norm(hidden, between, a.rms_norm_eps).view(-1, a.hidden_size)
        weights, chosen = route(normed, gate, a.num_experts_per_tok)
        inputs = LayerInputs(index, normed, weights, chosen)
        yield inputs
        if index + 1 < a.num_hidden_layers:
            flat = hidden.view(-1, a.hidden_size)
            for expert in range(a.num_local_experts):
                w1, w2, w3 = (weight.float() for weight in checkpoint.expert(index, expert))
                token, slot = torch.where(chosen == expert)
                rows = normed[token]
                output = (functional.silu(rows @ w1.t()) * (rows @ w3.t())) @ w2.t()
                flat.index_add_(0, token, output * weights[token, slot].unsqueeze(1))


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

"""Mixtral assembled around its experts: embedding, layers of attention and experts, head.

The decoder is written out here, not borrowed from transformers: one linear map and a handful of operators per layer
instead of a module tree (small models are bound by Python), a cache that serves sequences of unlike lengths, and no
tie to one version of transformers. Tests hold it to transformers' logits.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.model.attention import Attention, Positions, Rotary
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.linear import DenseLinear, Linear, linear, linear4
from lumoe.moe.model.moe_layer import Experts, MoELayer, Observer
from lumoe.moe.planning.plan import FULL_BITS


class Decoder:
    """The weights outside the experts, and the forward pass."""

    device = torch.device("cpu")

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, bits: int = FULL_BITS, use_native: bool = True
    ) -> None:
        """Read every weight but the experts'.

        Args:
            bits: of the projections (16, or 4 by rounding to nearest); embedding, norms and routers stay as they are.
            use_native: multiply with this package's own kernels where they can be compiled.

        Raises:
            UserError: `bits` is neither 16 nor 4.
        """
        if bits not in (FULL_BITS, 4):
            raise UserError(f"weights outside the experts have 16 or 4 bits, not {bits}")
        self.architecture = a = checkpoint.architecture
        self.dtype = dtype

        def read(*names: str) -> torch.Tensor:
            parts = [checkpoint.tensor(f"{name}.weight").to(dtype) for name in names]
            return torch.cat(parts) if len(parts) > 1 else parts[0]

        def project(weight: torch.Tensor) -> Linear:
            return linear(weight, use_native) if bits == FULL_BITS else linear4(weight, use_native)

        self.embedding = read("model.embed_tokens")
        self.head = project(self.embedding if a.tie_word_embeddings else read("lm_head"))
        self.norm = read("model.norm")
        self.layers: list[tuple[torch.Tensor, Attention, torch.Tensor, torch.Tensor]] = []
        for index in range(a.num_hidden_layers):
            prefix = f"model.layers.{index}"
            projection = project(read(*(f"{prefix}.self_attn.{part}_proj" for part in "qkv")))
            attention = Attention(index, a, projection, project(read(f"{prefix}.self_attn.o_proj")))
            gate = read(f"{prefix}.block_sparse_moe.gate")
            norms = read(f"{prefix}.input_layernorm"), read(f"{prefix}.post_attention_layernorm")
            self.layers.append((norms[0], attention, norms[1], gate))
        self._rotary = Rotary(a.head_width, a.rope_theta, dtype)
        self._experts: list[MoELayer] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the weights outside the experts."""
        shared = isinstance(self.head, DenseLinear) and self.head.weight is self.embedding
        total = self.embedding.nbytes + self.norm.nbytes + (0 if shared else self.head.nbytes)
        for first, attention, second, gate in self.layers:
            total += first.nbytes + attention.projection.nbytes + attention.output.nbytes + second.nbytes + gate.nbytes
        return total

    def attach(self, experts: Experts) -> None:
        """Take experts from `experts`."""
        top_k = self.architecture.num_experts_per_tok
        self._experts = [MoELayer(index, layer[3], top_k, experts) for index, layer in enumerate(self.layers)]

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` each layer's choices of experts from now on."""
        for layer in self._experts:
            layer.observer = observer

    def cache(self, sequences: int, capacity: int, bits: int = FULL_BITS) -> KVCache:
        """Return room for `sequences` sequences of up to `capacity` tokens; see `KVCache` for `bits`."""
        return KVCache(self.architecture, sequences, capacity, self.dtype, bits)

    def forward(self, tokens: torch.Tensor, cache: KVCache, slots: list[int], last_only: bool = False) -> torch.Tensor:
        """Run new tokens of some sequences and append them to the cache.

        Args:
            tokens: int64 `[sequences, tokens]`.
            slots: which of the cache's sequences these are.
            last_only: compute logits of each sequence's last token only.

        Returns:
            Logits `[sequences, tokens or 1, vocabulary]`.
        """
        a = self.architecture
        positions = Positions(cache, slots, tokens.shape[1], self._rotary, a.sliding_window)
        hidden = functional.embedding(tokens, self.embedding)
        for (before, attention, between, _), experts in zip(self.layers, self._experts, strict=True):
            hidden = hidden + attention(rms_norm(hidden, before, a.rms_norm_eps), cache, positions)
            normed = rms_norm(hidden, between, a.rms_norm_eps)
            hidden = hidden + experts(normed.view(-1, a.hidden_size)).view(hidden.shape)
        for slot in slots:
            cache.lengths[slot] += tokens.shape[1]
        if last_only:
            hidden = hidden[:, -1:]
        return self.head(rms_norm(hidden, self.norm, a.rms_norm_eps))


def rms_norm(hidden: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Divide by the root mean square over the last axis (in float32) and scale by `weight`."""
    return functional.rms_norm(hidden, weight.shape, weight, epsilon)

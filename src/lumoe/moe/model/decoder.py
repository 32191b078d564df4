"""A model assembled around its experts: embedding, layers of attention and experts, head.

The decoder is written out here, not borrowed from transformers: one linear map and a handful of operators per layer
instead of a module tree (small models are bound by Python), a cache that serves sequences of unlike lengths, and no
tie to one version of transformers. What sets one family of models apart from another is data, an `Architecture`. Tests
hold it to transformers' logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Activation, Latent
from lumoe.moe.checkpoint.safetensors import read_once
from lumoe.moe.checkpoint.stored import Coded
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.kernels.codes import CodedMatrix, finite
from lumoe.moe.model.activation import Clamped, gated
from lumoe.moe.model.attention import Attention, LatentAttention, Mixer, Positions
from lumoe.moe.model.delta_net import DeltaNet, DeltaWeights
from lumoe.moe.model.feed_forward import FeedForward
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.linear import BiasedLinear, DenseLinear, Linear, Rows, linear4, stacked
from lumoe.moe.model.moe_layer import ExpertBiases, Experts, MoELayer, Observer, attach
from lumoe.moe.model.norm import Norm
from lumoe.moe.model.one_token import TokenAttention, TokenRouter, token_attention, token_router
from lumoe.moe.model.rotary import Rotary, order
from lumoe.moe.model.router import Router
from lumoe.moe.planning.plan import FULL_BITS


@dataclass(frozen=True)
class Layer:
    """One layer: two norms, what mixes tokens, and what each token passes.

    Attributes:
        attention, router: norm and mixer, and norm and router, in one call each, where they can be.
    """

    before: Norm
    mixer: Mixer
    between: Norm
    feed: MoELayer | FeedForward
    attention: TokenAttention | None = None
    router: TokenRouter | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights that are always resident."""
        return self.before.nbytes + self.mixer.nbytes + self.between.nbytes + self.feed.nbytes


class Decoder:
    """The weights outside the experts, and the forward pass."""

    device = torch.device("cpu")

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        bits: int = FULL_BITS,
        use_native: bool = True,
        from_codes: bool = True,
    ) -> None:
        """Read every weight but the experts'.

        Args:
            bits: of the projections (16, or 4 by rounding to nearest); embedding, norms and routers stay as they are.
            use_native: multiply with this package's own kernels where they can be compiled.
            from_codes: in bfloat16, keep projections and embedding in the codes of a checkpoint's own format.

        Raises:
            UserError: `bits` is neither 16 nor 4.
        """
        if bits not in (FULL_BITS, 4):
            raise UserError(f"weights outside the experts have 16 or 4 bits, not {bits}")
        self.architecture = a = checkpoint.architecture
        self.dtype = dtype
        read = _Reader(checkpoint, dtype, bits, use_native, from_codes)
        rows = read.rows("model.embed_tokens.weight")
        self.embedding = rows.values if rows.kind is None else CodedMatrix(rows.values, rows.kind)
        rows = rows if a.tie_word_embeddings else read.rows("lm_head.weight")
        self.head = read.project([rows], read.tensor("lm_head.bias") if a.head_bias else None)
        self.norm = read.norm("model.norm")
        self.layers = list(read.layers())
        latent = a.attention.latent
        self.rotary = Rotary(a.rotary, latent.turned if latent else a.head_width, dtype)

    @property
    def moe_layers(self) -> list[MoELayer]:
        """The layers' experts, in the order of a plan."""
        return [layer.feed for layer in self.layers if isinstance(layer.feed, MoELayer)]

    @property
    def nbytes(self) -> int:
        """Bytes of the weights outside the experts."""
        shared = isinstance(self.head, DenseLinear) and self.head.weight is self.embedding
        if isinstance(self.head, CodedMatrix) and isinstance(self.embedding, CodedMatrix):
            shared = self.head.codes is self.embedding.codes
        ends = self.embedding.nbytes + self.norm.nbytes + (0 if shared else self.head.nbytes)
        return ends + sum(layer.nbytes for layer in self.layers)

    def attach(self, experts: Experts | None) -> None:
        """Take experts from `experts`; None lets go of those that there are."""
        attach(self.moe_layers, experts)

    def observe(self, observer: Observer | None) -> None:
        """Tell `observer` each layer's choices of experts from now on."""
        for layer in self.moe_layers:
            layer.observer = observer

    def cache(self, sequences: int, capacity: int, bits: int = FULL_BITS) -> KVCache:
        """Return room for `sequences` sequences of up to `capacity` tokens; see `KVCache` for `bits`."""
        return KVCache(self.architecture, sequences, capacity, self.dtype, bits)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the hidden states that the first layer takes, `[sequences, tokens, hidden]`."""
        if isinstance(self.embedding, CodedMatrix):
            hidden = self.embedding.rows(tokens)
        else:
            hidden = functional.embedding(tokens, self.embedding)
        scale = self.architecture.embedding_scale
        return hidden if scale == 1.0 else hidden * scale

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
        positions = Positions(cache, slots, tokens.shape[1], self.rotary)
        hidden = self.embed(tokens)
        step = positions.step(cache) if tokens.shape[1] == 1 else None
        for layer in self.layers:
            if step is not None and layer.attention is not None and layer.attention.few(len(slots)):
                layer.attention(hidden, step)
            else:
                hidden = self.add(hidden, layer.mixer(layer.before(hidden), cache, positions))
            hidden = self._fed(layer, hidden.view(-1, a.hidden_size)).view(hidden.shape)
        for slot in slots:
            cache.lengths[slot] += tokens.shape[1]
        if last_only and tokens.shape[1] > 1:
            hidden = hidden[:, -1:]
        logits = self.head(self.norm(hidden))
        return logits if a.logits_divisor == 1.0 else logits / a.logits_divisor

    def _fed(self, layer: Layer, hidden: torch.Tensor) -> torch.Tensor:
        """Return the residual stream `[tokens, hidden]` after the second half of a layer."""
        router, feed = layer.router, layer.feed
        if router is None or not isinstance(feed, MoELayer) or not router.few(hidden.shape[0]):
            return self.add(hidden, feed(layer.between(hidden)))
        routed = router(hidden)
        if feed.shared is None and self.architecture.residual_scale == 1.0:
            return feed.mix(*routed, onto=hidden)
        return self.add(hidden, feed.routed(*routed))

    def add(self, hidden: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """Return the residual stream with what a part of a layer adds to it."""
        scale = self.architecture.residual_scale
        return hidden + found if scale == 1.0 else hidden + found * scale


class _Reader:
    """Brings a checkpoint's tensors into the form that they compute in."""

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype, bits: int, use_native: bool, from_codes: bool
    ) -> None:
        self._checkpoint, self._dtype, self._bits, self._native = checkpoint, dtype, bits, use_native
        self._from_codes = from_codes and dtype == torch.bfloat16 and bits == FULL_BITS
        self.architecture = checkpoint.architecture

    def tensor(self, name: str) -> torch.Tensor:
        return self._checkpoint.tensor(name).to(self._dtype)

    def rows(self, name: str) -> Rows:
        """Read a matrix, as codes where the checkpoint has such and they are to be kept."""
        stored = self._checkpoint.stored(name) if self._from_codes else None
        if not isinstance(stored, Coded):
            return Rows(self.tensor(name))
        codes = stored.codes()
        if not finite(codes, stored.kind):
            raise UserError(f"{stored.path}: the tensor '{stored.name}' holds NaN or infinite values")
        return Rows(codes, stored.kind)

    def project(self, parts: Sequence[Rows], bias: torch.Tensor | None = None) -> Linear:
        """Return the product with matrices above each other, and what is added to it."""
        if self._bits == FULL_BITS:
            made = stacked(parts, self._native)
        else:
            made = linear4(torch.cat([part.values for part in parts]), self._native)
        return made if bias is None else BiasedLinear(made, bias)

    def norm(self, name: str) -> Norm:
        a = self.architecture
        if a.norm_offset:
            return Norm(self.norm_weight(f"{name}.weight"), a.rms_norm_eps)
        bias = self.tensor(f"{name}.bias") if a.norm == "layer" else None
        return Norm(self.tensor(f"{name}.weight"), a.rms_norm_eps, bias)

    def norm_weight(self, name: str) -> torch.Tensor:
        """Read a norm's weights; in float32 where something is added to them, which fewer bits would lose."""
        offset = self.architecture.norm_offset
        return self._checkpoint.tensor(name).float() + offset if offset else self.tensor(name)

    def layers(self) -> Iterator[Layer]:
        a, counted = self.architecture, 0
        mixer: Callable[[int], Mixer] = self._attention
        if a.attention.latent is not None:
            mixer = self._latent
        for index in range(a.num_hidden_layers):
            prefix = f"model.layers.{index}"
            before = self.norm(f"{prefix}.input_layernorm")
            mixed = self._delta(index) if index in a.delta_layers else mixer(index)
            between = self.norm(f"{prefix}.post_attention_layernorm")
            if index in a.dense_layers:
                yield self._layer(before, mixed, between, self._network(f"{prefix}.mlp"))
            else:
                yield self._layer(before, mixed, between, self._experts(f"{prefix}.block_sparse_moe", counted))
                counted += 1

    def _layer(self, before: Norm, mixer: Mixer, between: Norm, feed: MoELayer | FeedForward) -> Layer:
        attention = router = None
        if self._native and self._dtype == torch.bfloat16:
            attention = token_attention(before, mixer, self.architecture.residual_scale)
            router = token_router(between, feed.router) if isinstance(feed, MoELayer) else None
        return Layer(before, mixer, between, feed, attention, router)

    def _network(self, prefix: str, gate: torch.Tensor | None = None) -> FeedForward:
        w13 = self.project([self.rows(f"{prefix}.{name}.weight") for name in ("w1", "w3")])
        w2 = self.project([self.rows(f"{prefix}.w2.weight")])
        return FeedForward(w13, w2, gated(Activation()), gate)

    def _experts(self, prefix: str, counted: int) -> MoELayer:
        a, r = self.architecture, self.architecture.router
        # Corrections are small differences between scores near one another: they keep their float32.
        correction = self._checkpoint.tensor(f"{prefix}.gate.correction").float() if r.correction else None
        kept = torch.float32 if r.float32 else self._dtype
        bias = self._checkpoint.tensor(f"{prefix}.gate.bias").to(kept) if r.bias else None
        gate = self._checkpoint.tensor(f"{prefix}.gate.weight").to(kept)
        router = Router(gate, a.num_experts_per_tok, r, bias, correction)
        shared = None
        if a.shared_size:
            shared_gate = self.tensor(f"{prefix}.shared.gate.weight") if a.shared_gate else None
            shared = self._network(f"{prefix}.shared", shared_gate)
        biases = self._biases(prefix) if a.expert_bias else None
        return MoELayer(counted, router, shared, gated(a.activation), biases)

    def _biases(self, prefix: str) -> ExpertBiases:
        a = self.architecture
        with read_once():
            w1, w2, w3 = (
                torch.stack([self.tensor(f"{prefix}.experts.{e}.{name}.bias") for e in range(a.num_local_experts)])
                for name in ("w1", "w2", "w3")
            )
        activations = [Clamped(a.activation, gate, up) for gate, up in zip(w1, w3, strict=True)]
        return ExpertBiases(activations, w2, w1.nbytes + w2.nbytes + w3.nbytes)

    def _attention(self, index: int) -> Attention:
        a, at, prefix = self.architecture, self.architecture.attention, f"model.layers.{index}.self_attn"
        heads, groups, width = a.num_attention_heads, a.num_key_value_heads, a.head_width
        ordered = order(a.rotary, width)

        def arranged(values: torch.Tensor, count: int) -> torch.Tensor:
            """Bring the values of `count` heads, along the first axis, into the order of the rotary pairs."""
            if ordered is None:
                return values
            return values.view(count, width, *values.shape[1:])[:, ordered].flatten(0, 1)

        def parts(read: Callable[[str], Rows], kind: str) -> list[Rows]:
            query = read(f"{prefix}.q_proj.{kind}")
            gate = []
            if at.output_gate:
                both = query.values.view(heads, 2, width, *query.values.shape[1:])
                query, gate = Rows(both[:, 0].flatten(0, 1), query.kind), [Rows(both[:, 1].flatten(0, 1), query.kind)]
            key, value = read(f"{prefix}.k_proj.{kind}"), read(f"{prefix}.v_proj.{kind}")
            first, second = (
                Rows(arranged(query.values, heads), query.kind),
                Rows(arranged(key.values, groups), key.kind),
            )
            return [first, second, value, *gate]

        added = parts(lambda name: Rows(self.tensor(name)), "bias") if at.qkv_bias else []
        projection = self.project(
            parts(self.rows, "weight"), torch.cat([part.values for part in added]) if added else None
        )
        bias = self.tensor(f"{prefix}.o_proj.bias") if at.output_bias else None
        output = self.project([self.rows(f"{prefix}.o_proj.weight")], bias)
        norms = None
        if at.norm is not None:
            query, key = (self.norm_weight(f"{prefix}.{part}_norm.weight").to(self._dtype) for part in "qk")
            if at.norm == "head":
                query, key = query.repeat(heads), key.repeat(groups)
            norms = torch.cat((arranged(query, heads), arranged(key, groups))).view(heads + groups, width)
        sinks = self.tensor(f"{prefix}.sinks") if at.sinks else None
        return Attention(index, a, projection, output, norms, sinks)

    def _delta(self, index: int) -> DeltaNet:
        d, prefix = self.architecture.delta, f"model.layers.{index}.linear_attn"
        assert d is not None
        if d.interleaved:
            # Of each key head: query, key, and its value heads' values and gates; update rates, decays.
            wide = d.value_heads // d.key_heads * d.value
            heads = self.tensor(f"{prefix}.in_proj_qkvz.weight").view(d.key_heads, 2 * d.key + 2 * wide, -1)
            rates = self.tensor(f"{prefix}.in_proj_ba.weight").view(d.key_heads, 2 * d.value_heads // d.key_heads, -1)
            split = [*torch.split(heads, [d.key, d.key, wide, wide], dim=1), *rates.chunk(2, dim=1)]
            parts = [Rows(torch.cat([part.flatten(0, 1) for part in split]))]
        else:
            names = ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a")
            parts = [self.rows(f"{prefix}.{name}.weight") for name in names]
        weights = DeltaWeights(
            inputs=self.project(parts),
            convolution=self.tensor(f"{prefix}.conv1d.weight").squeeze(1),
            decay=self._checkpoint.tensor(f"{prefix}.A_log").float(),
            rate=self._checkpoint.tensor(f"{prefix}.dt_bias").float(),
            norm=Norm(self.tensor(f"{prefix}.norm.weight"), self.architecture.rms_norm_eps),
            output=self.project([self.rows(f"{prefix}.out_proj.weight")]),
        )
        return DeltaNet(self.architecture.delta_layers.index(index), d, weights)

    def _latent(self, index: int) -> LatentAttention:
        a, prefix = self.architecture, f"model.layers.{index}.self_attn"
        latent = a.attention.latent
        assert latent is not None
        heads, width = a.num_attention_heads, latent.plain + latent.turned
        query: tuple[Linear, Norm, Linear] | Linear
        if latent.query_rank is None:
            query = self.project([self._turned_last(f"{prefix}.q_proj.weight", heads, width, latent)])
        else:
            query = (
                self.project([self.rows(f"{prefix}.q_a_proj.weight")]),
                Norm(self.tensor(f"{prefix}.q_a_layernorm.weight"), a.latent_eps),
                self.project([self._turned_last(f"{prefix}.q_b_proj.weight", heads, width, latent)]),
            )
        compress = self._turned_last(f"{prefix}.kv_a_proj_with_mqa.weight", 1, latent.rank + latent.turned, latent)
        expand = self.tensor(f"{prefix}.kv_b_proj.weight").view(heads, latent.plain + latent.value, latent.rank)
        norm = Norm(self.tensor(f"{prefix}.kv_a_layernorm.weight"), a.latent_eps)
        output = self.project([self.rows(f"{prefix}.o_proj.weight")])
        return LatentAttention(index, a, query, self.project([compress]), norm, expand, output)

    def _turned_last(self, name: str, heads: int, width: int, latent: Latent) -> Rows:
        """Read a projection to heads of `width` whose last values are turned, these in the order of rotary pairs."""
        weight = self.rows(name)
        ordered = order(self.architecture.rotary, latent.turned)
        if ordered is None:
            return weight
        still = width - latent.turned
        places = torch.cat((torch.arange(still), still + ordered))
        return Rows(weight.values.view(heads, width, -1)[:, places].flatten(0, 1), weight.kind)

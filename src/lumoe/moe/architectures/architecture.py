"""The records that say what a decoder computes: its router, its attention, its positions, and the tensors it has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lumoe.errors import UserError
from lumoe.moe.planning.shape import ModelShape


class Record(BaseModel):
    """A part of an architecture: what it does not name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Router(Record):
    """How a token's experts are chosen and weighted.

    Attributes:
        score: what becomes of the logits: a softmax over all experts, a sigmoid, or the masked softmax of sparsemixer
            (arXiv 2409.12136), which has two experts.
        normalize: the weights of the chosen experts are divided by their sum. With a softmax this is the same as
            taking the softmax over the chosen alone.
        least_sum: the sum that is divided by is at least this.
        scale: the weights are multiplied by it last.
        bias: the logits have a bias.
        correction: a bias is added to the scores for the choice alone; weights are made of scores without it.
        groups, chosen_groups: experts are chosen from the best groups of them only.
        group_score: a group is as good as its best expert, or as its two best together.
        threshold: sparsemixer's, of a logit's distance from the largest one.
        float32: logits are computed in float32, whatever the type of the activations.
    """

    score: Literal["softmax", "sigmoid", "sparsemixer"] = "softmax"
    normalize: bool = True
    least_sum: float = Field(default=0.0, ge=0)
    scale: float = 1.0
    bias: bool = False
    correction: bool = False
    groups: int = Field(default=1, ge=1)
    chosen_groups: int = Field(default=1, ge=1)
    group_score: Literal["best", "two best"] = "best"
    threshold: float = 0.0
    float32: bool = False


class Rotary(Record):
    """Rotary positions (arXiv 2104.09864) of the first `width` values of a head, and how they are scaled.

    Attributes:
        width: of a head's values; None turns all of them.
        interleaved: a pair are neighbours, not values half of the width apart.
        kind: of scaling, as transformers names them; `settings` are the numbers that it takes.
        original_context: positions that the model was first trained with.
    """

    base: float = Field(default=1e4, gt=0, allow_inf_nan=False)
    width: int | None = Field(default=None, ge=2)
    interleaved: bool = False
    kind: Literal["default", "linear", "dynamic", "yarn", "longrope", "llama3"] = "default"
    settings: dict[str, Any] = Field(default_factory=dict)
    original_context: int = Field(default=0, ge=0)


class Latent(Record):
    """Multi-head latent attention (arXiv 2405.04434): keys and values are made of one short vector a token.

    Attributes:
        query_rank: of the queries' own compression; None where they are projected at once.
        rank: width of the vector that keys and values are made of.
        plain, turned: values of a head's key without and with positions.
        value: values of a head's value.
    """

    query_rank: int | None = Field(default=None, ge=1)
    rank: int = Field(ge=1)
    plain: int = Field(ge=1)
    turned: int = Field(ge=2)
    value: int = Field(ge=1)


class Delta(Record):
    """Gated DeltaNet (arXiv 2412.06464), in place of attention in some layers.

    Attributes:
        key_heads, value_heads: a key head serves several value heads.
        key, value: values of a head.
        convolution: tokens that queries, keys and values are mixed over, their own included.
        interleaved: the input projections' outputs stand head by head, not part by part.
        tiled: a key head's value heads are as many apart as there are key heads; else they are neighbours.
    """

    key_heads: int = Field(ge=1)
    value_heads: int = Field(ge=1)
    key: int = Field(ge=1)
    value: int = Field(ge=1)
    convolution: int = Field(ge=1)
    interleaved: bool = False
    tiled: bool = False

    @property
    def channels(self) -> int:
        """Queries, keys and values together."""
        return 2 * self.key_heads * self.key + self.value_heads * self.value


class Attention(Record):
    """What a layer's attention adds to grouped-query attention.

    Attributes:
        qkv_bias, output_bias: projections have biases.
        norm: queries and keys are divided by their root mean square: of each head, or of all heads together.
        norm_after: they are normalised after they are turned, not before.
        clip: queries, keys and values are kept within ± this.
        scale: of the logits; by default one over the square root of a head's width.
        sinks: each head has a logit without a value.
        output_gate: half of the query projection gates the output, through a sigmoid.
        latent: keys and values are made of one vector.
    """

    qkv_bias: bool = False
    output_bias: bool = False
    norm: Literal["head", "full"] | None = None
    norm_after: bool = False
    clip: float | None = Field(default=None, gt=0)
    scale: float | None = Field(default=None, gt=0)
    sinks: bool = False
    output_gate: bool = False
    latent: Latent | None = None


class Activation(Record):
    """What is made of an expert's two products: silu(gate) · up, or gpt-oss's clamped form of it.

    Attributes:
        limit: gate and up are clamped to it; None: not at all.
        alpha: silu(gate) is gate · sigmoid(alpha · gate).
        offset: added to up.
    """

    limit: float | None = None
    alpha: float = 1.0
    offset: float = 0.0


class Architecture(ModelShape):
    """A model's sizes, and everything else that its forward pass depends on. Sizes are named as Mixtral names them.

    Attributes:
        family: whose tensor names and configuration keys its files have.
        intermediate_size: width of an expert.
        dense_layers, dense_size: layers that have one feed-forward network in place of experts, and its width.
        shared_size: width of a network that every token passes beside its experts; 0: there is none.
        shared_gate: its output is multiplied by the sigmoid of a projection.
        expert_bias: experts' products have biases.
        delta, delta_layers: layers that have a Gated DeltaNet in place of attention.
        norm_offset: added to the weights of norms.
        sliding_window, windowed_layers: tokens that a token sees, and the layers where that holds (None: all).
        latent_eps: of the norms of latent vectors.
        norm: by the root mean square, or to mean 0 and deviation 1 with a bias.
        embedding_scale, residual_scale, logits_divisor: factors of Granite's.
        head_bias: the vocabulary's projection has a bias.
    """

    family: str = "mixtral"
    router: Router = Router()
    rotary: Rotary = Rotary(base=1e6)
    attention: Attention = Attention()
    activation: Activation = Activation()
    rms_norm_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    latent_eps: float = Field(default=1e-6, gt=0)
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    delta: Delta | None = None
    delta_layers: tuple[int, ...] = ()
    sliding_window: int | None = Field(default=None, ge=1)
    windowed_layers: tuple[int, ...] | None = None
    max_position_embeddings: int = Field(default=32768, ge=1)
    dense_size: int = Field(default=0, ge=0)
    shared_size: int = Field(default=0, ge=0)
    shared_gate: bool = False
    expert_bias: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    head_bias: bool = False

    def window(self, layer: int) -> int | None:
        """Return how many tokens a token of a layer sees, itself included; None: all."""
        everywhere = self.windowed_layers is None or layer in self.windowed_layers
        return self.sliding_window if everywhere else None

    def check_context(self, tokens: int, model: str | Path = "this model") -> None:
        """Refuse sequences of more tokens than the model was made for: what it says of them means nothing.

        Raises:
            UserError: there are more.
        """
        if tokens > self.max_position_embeddings:
            raise UserError(
                f"a context of {tokens} tokens exceeds the {self.max_position_embeddings} that {model} was made for"
            )

    @property
    def non_expert_parameters(self) -> int:
        """All that is always resident: embedding, head, attention, norms, routers, shared and dense networks."""
        total = 0
        for _, shape in self.tensors(experts=False):
            size = 1
            for length in shape:
                size *= length
            total += size
        return total

    @property
    def outside_parameters_per_token(self) -> int:
        biases = self.hidden_size + 2 * self.intermediate_size if self.expert_bias else 0
        idle = len(self.moe_layers) * (self.num_local_experts - self.num_experts_per_tok)
        return super().outside_parameters_per_token - idle * biases

    @property
    def kv_layout(self) -> tuple[int, int, int]:
        latent = self.attention.latent
        return super().kv_layout if latent is None else (1, 1, latent.rank + latent.turned)

    @property
    def kv_layers(self) -> int:
        return self.num_hidden_layers - len(self.delta_layers)

    @property
    def state_bytes(self) -> int:
        if self.delta is None:
            return 0
        d = self.delta
        values = d.channels * (d.convolution - 1) + d.value_heads * d.key * d.value
        return len(self.delta_layers) * values * 4

    def tensors(self, experts: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield name and shape of every tensor, under the names that Mixtral's have, or would have.

        Args:
            experts: with the experts' weights; their biases are not among them, for they are always resident.
        """
        hidden = self.hidden_size
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        yield from self._norm("model.norm")
        if not self.tie_word_embeddings:
            yield "lm_head.weight", (self.vocab_size, hidden)
        if self.head_bias:
            yield "lm_head.bias", (self.vocab_size,)
        for layer in range(self.num_hidden_layers):
            prefix = f"model.layers.{layer}"
            yield from self._norm(f"{prefix}.input_layernorm")
            yield from self._norm(f"{prefix}.post_attention_layernorm")
            if self.delta is not None and layer in self.delta_layers:
                yield from _delta_tensors(f"{prefix}.linear_attn", self.hidden_size, self.delta)
            else:
                yield from self._attention_tensors(f"{prefix}.self_attn")
            if layer in self.dense_layers:
                yield from _network(f"{prefix}.mlp", hidden, self.dense_size)
            else:
                yield from self._moe_tensors(f"{prefix}.block_sparse_moe", experts)

    def _norm(self, name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (self.hidden_size,)
        if self.norm == "layer":
            yield f"{name}.bias", (self.hidden_size,)

    def _attention_tensors(self, prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        a, hidden = self.attention, self.hidden_size
        if a.latent is not None:
            yield from self._latent_tensors(prefix, a.latent)
            return
        query, key = self.num_attention_heads * self.head_width, self.num_key_value_heads * self.head_width
        rows = {"q": query * (2 if a.output_gate else 1), "k": key, "v": key}
        for part, count in rows.items():
            yield f"{prefix}.{part}_proj.weight", (count, hidden)
            if a.qkv_bias:
                yield f"{prefix}.{part}_proj.bias", (count,)
        yield f"{prefix}.o_proj.weight", (hidden, query)
        if a.output_bias:
            yield f"{prefix}.o_proj.bias", (hidden,)
        if a.norm:
            yield f"{prefix}.q_norm.weight", (self.head_width if a.norm == "head" else query,)
            yield f"{prefix}.k_norm.weight", (self.head_width if a.norm == "head" else key,)
        if a.sinks:
            yield f"{prefix}.sinks", (self.num_attention_heads,)

    def _latent_tensors(self, prefix: str, latent: Latent) -> Iterator[tuple[str, tuple[int, ...]]]:
        heads, hidden = self.num_attention_heads, self.hidden_size
        query = heads * (latent.plain + latent.turned)
        if latent.query_rank is None:
            yield f"{prefix}.q_proj.weight", (query, hidden)
        else:
            yield f"{prefix}.q_a_proj.weight", (latent.query_rank, hidden)
            yield f"{prefix}.q_a_layernorm.weight", (latent.query_rank,)
            yield f"{prefix}.q_b_proj.weight", (query, latent.query_rank)
        yield f"{prefix}.kv_a_proj_with_mqa.weight", (latent.rank + latent.turned, hidden)
        yield f"{prefix}.kv_a_layernorm.weight", (latent.rank,)
        yield f"{prefix}.kv_b_proj.weight", (heads * (latent.plain + latent.value), latent.rank)
        yield f"{prefix}.o_proj.weight", (hidden, heads * latent.value)

    def _moe_tensors(self, prefix: str, experts: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, wide, count = self.hidden_size, self.intermediate_size, self.num_local_experts
        yield f"{prefix}.gate.weight", (count, hidden)
        if self.router.bias:
            yield f"{prefix}.gate.bias", (count,)
        if self.router.correction:
            yield f"{prefix}.gate.correction", (count,)
        if self.shared_size:
            yield from _network(f"{prefix}.shared", hidden, self.shared_size)
            if self.shared_gate:
                yield f"{prefix}.shared.gate.weight", (1, hidden)
        for expert in range(count):
            if experts:
                yield from _network(f"{prefix}.experts.{expert}", hidden, wide)
            if self.expert_bias:
                for name, size in (("w1", wide), ("w2", hidden), ("w3", wide)):
                    yield f"{prefix}.experts.{expert}.{name}.bias", (size,)


def _delta_tensors(prefix: str, hidden: int, delta: Delta) -> Iterator[tuple[str, tuple[int, ...]]]:
    value = delta.value_heads * delta.value
    if delta.interleaved:
        yield f"{prefix}.in_proj_qkvz.weight", (delta.channels + value, hidden)
        yield f"{prefix}.in_proj_ba.weight", (2 * delta.value_heads, hidden)
    else:
        yield f"{prefix}.in_proj_qkv.weight", (delta.channels, hidden)
        yield f"{prefix}.in_proj_z.weight", (value, hidden)
        yield f"{prefix}.in_proj_b.weight", (delta.value_heads, hidden)
        yield f"{prefix}.in_proj_a.weight", (delta.value_heads, hidden)
    yield f"{prefix}.conv1d.weight", (delta.channels, 1, delta.convolution)
    yield f"{prefix}.A_log", (delta.value_heads,)
    yield f"{prefix}.dt_bias", (delta.value_heads,)
    yield f"{prefix}.norm.weight", (delta.value,)
    yield f"{prefix}.out_proj.weight", (hidden, value)


def _network(prefix: str, hidden: int, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{prefix}.w1.weight", (wide, hidden)
    yield f"{prefix}.w2.weight", (hidden, wide)
    yield f"{prefix}.w3.weight", (wide, hidden)

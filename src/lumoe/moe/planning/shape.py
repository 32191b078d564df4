"""The shape of a Mixture-of-Experts model and what its parts weigh in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from lumoe.moe.planning.plan import FULL_BITS, Memory

BYTES_FULL = FULL_BITS // 8
BYTES_PER_GROUP = 4  # scale and zero point of one group, bfloat16 each
KV_BLOCK = 16  # tokens whose keys and values are held, shared and given back together
_PAGE = 4096  # blocks are whole pages: what is given back is back with the system


class ModelShape(BaseModel):
    """Widths and counts, named as in Mixtral's `config.json`; `intermediate_size` is an expert's.

    Attributes:
        dense_layers: layers without experts; a plan does not know them.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_hidden_layers: int = Field(ge=1)
    num_local_experts: int = Field(ge=1)
    num_experts_per_tok: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    intermediate_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    vocab_size: int = Field(ge=1)
    head_dim: int | None = Field(default=None, ge=1)
    tie_word_embeddings: bool = False
    dense_layers: tuple[int, ...] = ()

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """Layers that have experts; a plan's layers are these, in order."""
        return tuple(layer for layer in range(self.num_hidden_layers) if layer not in self.dense_layers)

    @property
    def plan_shape(self) -> tuple[int, int]:
        """(layers with experts, experts per layer)."""
        return len(self.moe_layers), self.num_local_experts

    @property
    def experts(self) -> int:
        """Experts in the whole model."""
        return len(self.moe_layers) * self.num_local_experts

    @property
    def head_width(self) -> int:
        """Values per attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert: w1 and w3 `[intermediate, hidden]`, w2 `[hidden, intermediate]`."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def non_expert_parameters(self) -> int:
        """Embedding, head, attention, routers and norms."""
        attention = 2 * self.hidden_size * self.head_width * (self.num_attention_heads + self.num_key_value_heads)
        layer = attention + self.num_local_experts * self.hidden_size + 2 * self.hidden_size
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    @property
    def outside_parameters_per_token(self) -> int:
        """Weights outside the experts that the computation of one token uses: all but the others' embeddings."""
        looked_up = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self.non_expert_parameters - looked_up

    @property
    def bytes_full(self) -> int:
        """Bytes of the whole model at 16 bits."""
        return BYTES_FULL * (self.non_expert_parameters + self.experts * self.expert_parameters)

    def expert_bytes(self, bits: int, group_size: int) -> int:
        """Bytes of one expert: 2 per weight at 16 bits, else packed codes plus scale and zero point of every group.

        Args:
            bits: bits per weight.
            group_size: weights along the input that share a scale; 0 counts codes alone, as the paper does.
        """
        if bits == FULL_BITS:
            return BYTES_FULL * self.expert_parameters
        groups = self.expert_parameters // group_size if group_size else 0
        return self.expert_parameters * bits // 8 + BYTES_PER_GROUP * groups

    @property
    def kv_layout(self) -> tuple[int, int, int]:
        """What is stored of a token in a layer: vectors a head (keys and values: 2), heads, values of a vector."""
        return 2, self.num_key_value_heads, self.head_width

    @property
    def kv_layers(self) -> int:
        """Layers that store keys and values."""
        return self.num_hidden_layers

    @property
    def state_bytes(self) -> int:
        """Bytes that a sequence takes whatever its length, in layers that keep a state in place of keys and values."""
        return 0

    def kv_block_bytes(self, value_bytes: int = BYTES_FULL, bits: int = FULL_BITS) -> int:
        """Bytes of the keys and values of KV_BLOCK tokens, in whole pages.

        Args:
            value_bytes: of one value as it is computed.
            bits: 16 stores values as they are, 8 stores codes of a byte and a scale of 4 bytes for each head's vector.
        """
        parts, heads, width = self.kv_layout
        vector = width * value_bytes if bits == FULL_BITS else width + 4
        size = self.kv_layers * parts * heads * KV_BLOCK * vector
        return -(-size // _PAGE) * _PAGE

    def kv_bytes(self, tokens: int, value_bytes: int = BYTES_FULL, bits: int = FULL_BITS) -> int:
        """Bytes of the keys and values of a sequence of `tokens` tokens, and of its states, in whole blocks."""
        block = self.kv_block_bytes(value_bytes, bits)
        return (-(-tokens // KV_BLOCK) + -(-self.state_bytes // block)) * block

    def memory(self, precisions: Iterable[int], group_size: int, buffer_experts: int = 0) -> Memory:
        """Return the bytes of the model's parts, with a swap buffer of `buffer_experts` experts at 16 bits."""
        bytes_of = {bits: self.expert_bytes(bits, group_size) for bits in sorted({*precisions, FULL_BITS})}
        return self.memory_of(bytes_of, buffer_experts)

    def memory_of(self, bytes_of: Mapping[int, int], buffer_experts: int = 0) -> Memory:
        """Return the bytes of the model's parts where those of one expert (by bits per weight) are known otherwise."""
        non_expert, block = BYTES_FULL * self.non_expert_parameters, self.kv_block_bytes()
        return Memory(bytes_of, non_expert, buffer_experts * max(bytes_of.values()), kv_block=block)

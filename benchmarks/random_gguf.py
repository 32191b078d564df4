"""Models of true widths as GGUF files, Q4_0 throughout, their codes drawn at random: speed does not depend on them.

The architecture is llama.cpp's for Mixtral, whatever the widths. Routers decide how even the routing is: with rows of
one size, every expert of a layer is chosen about equally often; with sizes that fall, the first ones of a drawn order
are chosen more often than the last. What layers add is small beside a token's embedding: as drawn it would make all
tokens alike, and they would ask for the same experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_mixtral import add_placeholder
from numpy.typing import NDArray

from lumoe.files import atomic_path

VOCABULARY = 32000
STORED = gguf.GGMLQuantizationType.Q4_0
BLOCK, BLOCK_BYTES = 32, 18
# What weights are of random ones that keep a vector's size, and those of the matrices that add to the embedding.
SIZE, ADDED = 0.2, 0.01


@dataclass(frozen=True)
class Shape:
    """Widths of a model.

    Attributes:
        wide: of an expert's hidden layer.
        chosen: experts a token.
        head: width of a head.
    """

    hidden: int
    wide: int
    experts: int
    chosen: int
    layers: int
    heads: int
    groups: int
    head: int = 128

    @property
    def attention_weights(self) -> int:
        """Weights of a layer's attention."""
        return 2 * self.hidden * self.head * (self.heads + self.groups)

    @property
    def expert_weights(self) -> int:
        """Weights of one expert."""
        return 3 * self.hidden * self.wide

    @property
    def bytes_outside(self) -> int:
        """Bytes of the weights outside the experts, without norms and routers."""
        return _nbytes(self.layers * self.attention_weights + 2 * VOCABULARY * self.hidden)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights, without norms and routers."""
        return self.bytes_outside + _nbytes(self.layers * self.experts * self.expert_weights)

    @property
    def bytes_of_a_token(self) -> int:
        """Bytes of the weights that decoding a token reads."""
        layer = self.attention_weights + self.chosen * self.expert_weights
        return _nbytes(self.layers * layer + VOCABULARY * self.hidden)


SHAPES = {
    # Two layers of Mixtral 8x7B's widths, eight of OLMoE's.
    "mixtral": Shape(4096, 14336, experts=8, chosen=2, layers=2, heads=32, groups=8),
    "fine": Shape(2048, 1024, experts=64, chosen=8, layers=8, heads=16, groups=16),
    # Whole models.
    "olmoe-1b-7b": Shape(2048, 1024, experts=64, chosen=8, layers=16, heads=16, groups=16),
    "qwen3-30b-a3b": Shape(2048, 768, experts=128, chosen=8, layers=48, heads=32, groups=4),
    "mixtral-8x7b": Shape(4096, 14336, experts=8, chosen=2, layers=32, heads=32, groups=8),
}


def write_model(path: Path, shape: Shape, skew: float = 0.0) -> None:
    """Write a model, a tensor at a time, unless it is there.

    Args:
        skew: the r-th row of a router, in an order drawn for each layer, has a size proportional to 1/r^skew.
    """
    if path.is_file():
        return
    draw = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        writer.add_context_length(4096)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.wide)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.groups)
        writer.add_key_length(shape.head)
        writer.add_value_length(shape.head)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(1e6)
        writer.add_rope_dimension_count(shape.head)
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.chosen)
        add_placeholder(writer, VOCABULARY)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
        sizes = _sizes(shape)
        for name, size in sizes.items():
            if _is_matrix(name):
                nbytes = _nbytes(int(np.prod(size)))
                writer.add_tensor_info(name, (*size[:-1], _nbytes(size[-1])), np.dtype(np.uint8), nbytes, STORED)
            else:
                writer.add_tensor_info(name, size, np.dtype(np.float32), 4 * int(np.prod(size)))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, size in sizes.items():
            writer.write_tensor_data(_values(name, size, draw, skew))
        writer.close()


def _nbytes(weights: int) -> int:
    return weights // BLOCK * BLOCK_BYTES


def _is_matrix(name: str) -> bool:
    return "norm" not in name and "gate_inp" not in name


def _sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return the tensors in the order of the file."""
    s = shape
    found: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, s.hidden), "output_norm": (s.hidden,), "output": (VOCABULARY, s.hidden)
    }  # fmt: skip
    for layer in range(s.layers):
        found |= {
            f"blk.{layer}.{name}": size
            for name, size in {
                "attn_norm": (s.hidden,),
                "attn_q": (s.heads * s.head, s.hidden),
                "attn_k": (s.groups * s.head, s.hidden),
                "attn_v": (s.groups * s.head, s.hidden),
                "attn_output": (s.hidden, s.heads * s.head),
                "ffn_norm": (s.hidden,),
                "ffn_gate_inp": (s.experts, s.hidden),
                "ffn_gate_exps": (s.experts, s.wide, s.hidden),
                "ffn_up_exps": (s.experts, s.wide, s.hidden),
                "ffn_down_exps": (s.experts, s.hidden, s.wide),
            }.items()
        }
    return {f"{name}.weight": size for name, size in found.items()}


def _values(name: str, size: tuple[int, ...], draw: np.random.Generator, skew: float) -> NDArray[Any]:
    if "norm" in name:
        return np.ones(size, np.float32)
    if "gate_inp" in name:
        fall = np.arange(1, size[0] + 1) ** -skew
        rows: NDArray[np.float32] = draw.standard_normal(size, np.float32) * draw.permutation(fall)[:, None]
        return rows.astype(np.float32)
    blocks = draw.integers(0, 256, (*size[:-1], size[-1] // BLOCK, BLOCK_BYTES), dtype=np.uint8)
    scale = (ADDED if "attn_output" in name or "ffn_down" in name else SIZE) / size[-1] ** 0.5
    blocks[..., :2] = np.array([scale], dtype=np.float16).view(np.uint8)
    return blocks.reshape(*size[:-1], -1)

"""A small random Mixtral on disk, made anew for every test session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lumoe.moe.checkpoint import Checkpoint
from lumoe.moe.quantize import Recipe, quantize

TINY = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "bos_token_id": 0,
    "eos_token_id": 0,
    # Wide weights: outputs far from uniform, so that a wrong expert or position shows.
    "initializer_range": 0.15,
}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def make_model(folder: Path, dtype: torch.dtype, **changes: object) -> Path:
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**{**TINY, **changes}))
    model.to(dtype).save_pretrained(folder, max_shard_size="300KB")
    return folder


@pytest.fixture(scope="session")
def model_f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("f32"), torch.float32)


@pytest.fixture(scope="session")
def model_bf16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("bf16"), torch.bfloat16)


@pytest.fixture(scope="session")
def quantized(model_bf16: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Rounded experts of the bfloat16 model: bits -> folder."""
    checkpoint = Checkpoint(model_bf16)
    tokens = torch.randint(0, TINY["vocab_size"], (4, 16), generator=torch.Generator().manual_seed(3))
    folders = {}
    for bits in (2, 3, 4):
        folders[bits] = tmp_path_factory.mktemp(f"rtn{bits}")
        quantize(checkpoint, tokens, folders[bits], Recipe("rtn", bits, 32 if bits == 3 else 64))
    return folders

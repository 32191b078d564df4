"""A small random Mixtral on disk, made anew for every test session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_mixtral import TINY, make_model

from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.quantization.quantize import Recipe, quantize


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


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

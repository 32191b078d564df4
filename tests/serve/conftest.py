"""One small model and one server of it for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from running import Running, make_model, serving

from lumoe.moe.serve.run import Setup


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def running(model: Path) -> Iterator[Running]:
    with serving(Setup(model, dtype="float32")) as found:
        yield found

"""The page that adds a family says what is shipped, and what it says works."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_families import MODELS, VOCABULARY, make
from transformers import AriaConfig, AriaForConditionalGeneration

from lumoe.moe.architectures import families
from lumoe.moe.architectures.families import aria
from lumoe.moe.architectures.read import known_families
from lumoe.moe.engine.engine import Engine

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/howto/new-architecture.md").read_text(encoding="utf-8")
FAMILY, FIXTURE = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
FILES = sorted(Path(families.__path__[0]).glob("[!_]*.py"))
IDS = torch.randint(10, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The page's file in place of the shipped one."""
    (tmp_path / "family_of_the_page.py").write_text(FAMILY, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("family_of_the_page")
    others = tuple(family for family in families.ALL if family is not aria)
    assert len(others) == len(families.ALL) - 1
    monkeypatch.setattr(families, "ALL", (*others, module))
    known_families.cache_clear()
    yield module
    known_families.cache_clear()


def test_the_page_shows_the_shipped_file() -> None:
    assert Path(aria.__file__).read_text(encoding="utf-8") == FAMILY
    assert ast.literal_eval(f"{{{FIXTURE}}}") == {"aria_text": MODELS["aria_text"]}


def test_its_file_gives_the_logits_of_transformers(
    of_the_page: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "page", ast.literal_eval(f"{{{FIXTURE}}}")["aria_text"])
    model = make("page", tmp_path / "model")
    assert known_families()["aria_text"] is of_the_page
    with torch.inference_mode():
        expected = model(IDS).logits
    found = Engine.load(tmp_path / "model", dtype=torch.float32).logits(IDS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_images_are_left_alone(tmp_path: Path) -> None:
    """The published files have what sees images beside the language model, under names of their own."""
    torch.manual_seed(4)
    text = {"model_type": "aria_text", "vocab_size": VOCABULARY, "hidden_size": 64, "num_attention_heads": 4}
    text |= {"num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": None}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "num_attention_heads": 2}
    config = AriaConfig(
        text_config={**text, **MODELS["aria_text"][1]},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        projector_patch_to_query_dict={4: 2},
        pad_token_id=None,
    )
    model = AriaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            tensor.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2)
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = model(input_ids=IDS).logits
    torch.testing.assert_close(Engine.load(tmp_path, dtype=torch.float32).logits(IDS), expected, rtol=0, atol=1e-4)


def test_families_are_short_and_named() -> None:
    assert {Path(str(family.__file__)) for family in families.ALL} == {*FILES}
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in FILES]
    assert max(lengths) <= 120
    assert sorted(lengths)[len(lengths) // 2] < 80

"""Nothing that comes with a model is run: pickles are not opened, code is refused by name."""

from __future__ import annotations

import ast
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from tiny_model import make_model

from lumoe.errors import UserError
from lumoe.moe.checkpoint.safetensors import SINGLE
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.training.state import load_state

ROOT = Path(__file__).parents[2]
# Modules and functions that turn bytes into live objects.
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("yaml", "load"),
                ("yaml", "unsafe_load"), ("pd", "read_pickle")}  # fmt: skip


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def plant(path: Path, mark: Path) -> None:
    """Write the bomb as `torch.save` writes (a zip with data.pkl), which is what a checkpoint's loader would open."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb(mark)))
        archive.writestr("archive/version", "3\n")


def test_the_bomb_is_live(tmp_path: Path) -> None:
    plant(tmp_path / "a.pt", tmp_path / "mark")
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "mark").is_dir()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_instead_of_weights_is_refused_and_one_beside_them_is_not_opened(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model")
    plant(folder / name, tmp_path / "mark")
    Engine.load(folder, dtype=torch.float32).logits(torch.tensor([[1, 2, 3]]))
    load_tokenizer(folder)
    (folder / SINGLE).unlink()
    with pytest.raises(UserError, match=rf"{folder}: neither .*never loaded"):
        Checkpoint(folder)
    assert not (tmp_path / "mark").exists()


def test_transformers_is_never_left_to_find_a_pickle(tmp_path: Path) -> None:
    from transformers import MixtralForCausalLM

    folder = make_model(tmp_path / "model")
    (folder / SINGLE).unlink()
    plant(folder / "pytorch_model.bin", tmp_path / "mark")
    with pytest.raises(OSError, match="safetensors"):
        MixtralForCausalLM.from_pretrained(folder, use_safetensors=True)
    assert not (tmp_path / "mark").exists()


def test_a_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    plant(folder / SINGLE, tmp_path / "mark")
    with pytest.raises(UserError, match=f"{SINGLE}: not a whole safetensors file"):
        Checkpoint(folder)
    (tmp_path / "state").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    with pytest.raises(UserError, match="state: not a whole safetensors file"):
        load_state(tmp_path / "state")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_in_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path / "model")
    code = f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\nclass Model: pass\n"
    (folder / "modeling_evil.py").write_text(code, encoding="utf-8")
    values = json.loads((folder / name).read_text(encoding="utf-8"))
    values["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Model", "AutoTokenizer": ["modeling_evil.Model", None]}
    (folder / name).write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(UserError, match=rf"{name}: it names Python code"):
        load_tokenizer(folder)
    if name == "config.json":
        with pytest.raises(UserError, match=rf"{name}: it names Python code"):
            Checkpoint(folder)
    assert not (tmp_path / "mark").exists()


def calls_and_imports(path: Path) -> set[str]:
    """Names of unsafe modules and functions that a source file uses."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in UNSAFE_MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in UNSAFE_MODULES:
            found.add(str(node.module))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in UNSAFE_CALLS:
                found.add(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            found.add(node.id)
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), path
            found |= {"trust_remote_code"} if node.value.value is not False else set()
    return found


def test_the_package_has_nothing_that_loads_objects() -> None:
    sources = [*ROOT.glob("src/**/*.py"), *ROOT.glob("workflow/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    assert len(sources) > 100
    # The mutation runs execute changed copies of this package's own sources.
    assert {path.name: found for path in sources if (found := calls_and_imports(path))} == {"mutation.py": {"exec"}}


def test_every_model_from_transformers_is_asked_for_as_safetensors() -> None:
    missing = []
    for path in [*ROOT.glob("src/**/*.py"), *ROOT.glob("benchmarks/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr == "from_pretrained" and "ForCausalLM" in ast.unparse(node.func.value):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                missing += [] if options.get("use_safetensors") == "True" else [f"{path.name}:{node.lineno}"]
    assert missing == []

"""Killed while it quantises: what is on disk is whole, and the next run does only what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from artifacts import TOKENS
from tiny_model import make_model

from lumoe.errors import UserError
from lumoe.files import read_csv
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.quantization.folder import QuantizedExperts
from lumoe.moe.quantization.quantize import Recipe, quantize
from lumoe.sealed_tensors import load_tensors

RECIPE = Recipe("rtn", 4, 32)
# Quantises with a pause after each expert, and dies by its own hand where the second argument says.
PROGRAM = """
import os, signal, sys, time
from pathlib import Path
import torch
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.quantization.quantize import Recipe, quantize

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

folder, where, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
write, replace, seen = Path.write_bytes, Path.replace, []

def cut(path, content):
    seen.append(path)
    write(path, content[: len(content) // 2] if len(seen) == number else content)
    if len(seen) == number:
        die()

def stop(path, target):
    seen.append(path)
    if len(seen) == number:
        die()
    return replace(path, target)

if where == "within a file":
    Path.write_bytes = cut
elif where == "before a rename":
    Path.replace = stop
torch.set_num_threads(1)
print("ready", flush=True)
tokens = torch.arange(48).view(3, 16)
quantize(Checkpoint(folder / "model"), tokens, folder / "store", Recipe("rtn", 4, 32), lambda _: time.sleep(0.05))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("killed") / "model")


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that an undisturbed run stores."""
    folder = tmp_path_factory.mktemp("whole")
    quantize(Checkpoint(model), TOKENS, folder, RECIPE)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        f"{path.name} {name}": value.reshape(-1).view(torch.uint8).numpy().tobytes()
        for path in sorted(folder.glob("layer-*"))
        for name, value in load_tensors(path)[0].items()
    }


# Six experts, then the table and the manifest: renames 1 to 6, 7 and 8.
@pytest.mark.parametrize(
    ("where", "number", "finished"),
    [("within a file", 3, 2), ("before a rename", 4, 3), ("before a rename", 8, 6), ("at a random moment", 0, None)],
)
def test_quantising_goes_on_at_the_expert(
    model: Path, whole: dict[str, bytes], tmp_path: Path, where: str, number: int, finished: int | None
) -> None:
    (tmp_path / "model").symlink_to(model)
    store = tmp_path / "store"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), where, str(number)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if finished is None:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05 + 0.2 * Random(os.getpid()).random())  # noqa: S311 - a moment, not a secret
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    before = {path: (path.stat().st_mtime_ns, load_tensors(path)) for path in store.glob("layer-*")}
    assert finished in (len(before), None)
    with pytest.raises(UserError, match=r"manifest\.json: no such file"):
        QuantizedExperts(store)
    done = quantize(Checkpoint(tmp_path / "model"), TOKENS, store, RECIPE)
    assert all(path.stat().st_mtime_ns == changed for path, (changed, _) in before.items())
    assert contents(store) == whole
    assert len(read_csv(store / "experts.csv")) == len(done) == 6
    assert QuantizedExperts(store).bits == 4
    # What the killed run had begun is gone as well.
    assert [path for path in store.glob(".*") if "safetensors" in path.name] == []

"""Is this the model that was recorded, and does it still do on this installation's corpora what its record says?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lumoe.errors import UserError
from lumoe.files import read_json
from lumoe.moe.checkpoint.manifest import verify_manifest
from lumoe.moe.corpora.corpus import read_statistics
from lumoe.moe.training.make_model import held_out


def check_model(folder: Path, corpora: Mapping[str, Path], window: int, windows: int) -> dict[str, Any]:
    """Verify the files of a model folder and evaluate it on the test splits of `corpora`.

    Args:
        folder: a folder that `train_model` wrote.
        corpora: name -> corpus folder.
        window: tokens per window, at most the context the model was trained on.
        windows: at most so many windows per corpus.

    Returns:
        The measured numbers, the numbers of the model's own record, and `same_corpora`: per corpus whether its train
        split is, byte for byte, the one that the model was trained on.

    Raises:
        UserError: a file of the model is missing or damaged, the window is too long, or a corpus is missing.
    """
    verify_manifest(folder)
    record = read_json(folder / "training.json")
    context = int(record["settings"]["sequence"])
    if window > context:
        raise UserError(
            f"{folder}: windows of {window} tokens are longer than the {context} it was trained on; "
            f"set perplexity.window to {context} or less"
        )
    known = {name: parts["train_sha256"] for name, parts in record["corpora"].items()}
    here = {name: read_statistics(path)["splits"]["train"]["sha256"] for name, path in corpora.items()}
    return {
        "parameters": record["parameters"],
        "bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        **held_out(folder, corpora, window, windows),
        "window": window,
        "same_corpora": {name: known.get(name) == digest for name, digest in here.items()},
        "basis": "measured",
        "trained": {key: record[key] for key in ("steps", "tokens", "seconds", "held_out", "least_expert_share")},
    }


def differences(folder: Path, corpora: Mapping[str, Path], same: Mapping[str, bool]) -> Iterator[str]:
    """Yield one sentence for each corpus whose train split is not the one that the model was trained on."""
    trained = read_json(folder / "training.json")["corpora"]
    for name in (name for name, equal in same.items() if not equal):
        statistics = read_statistics(corpora[name])
        here = f"{statistics.get('package', statistics['source'])} {statistics.get('version', '')}".strip()
        if name not in trained:
            yield f"corpus '{name}' ({here}) is not one of those the model was trained on ({', '.join(trained)})"
        else:
            then = (
                f"{trained[name].get('package', trained[name].get('source', name))} {trained[name].get('version', '')}"
            )
            yield (
                f"corpus '{name}' comes from {here} here and came from {then.strip()} when the model was trained: "
                "texts and splits differ, a test document may have been trained on, perplexities are not comparable"
            )

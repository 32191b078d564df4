"""Make a model folder from corpora: tokenizer, training, held-out check against a trigram, manifest."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import MixtralForCausalLM

from lumoe.errors import UserError
from lumoe.files import atomic_path, write_csv, write_json
from lumoe.moe.checkpoint.manifest import write_manifest
from lumoe.moe.checkpoint.tokenizer import encode, load_tokenizer, train_tokenizer
from lumoe.moe.corpora.corpus import read_documents, read_statistics, read_text
from lumoe.moe.training.expert_batch import batch_experts
from lumoe.moe.training.held_out import evaluate, least_share, predicted_positions, windows
from lumoe.moe.training.train import Progress, TrainingSettings, train
from lumoe.moe.training.trigram import Trigram
from lumoe.progress import track


def train_model(
    corpora: Mapping[str, Path],
    output: Path,
    settings: TrainingSettings,
    *,
    checkpoint: Path | None = None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> dict[str, Any]:
    """Train a model on the train splits of `corpora` and write its folder; return what `training.json` holds.

    The folder is in Hugging Face format (bfloat16), with `training.json`, `loss.csv` and `manifest.json`.

    Raises:
        UserError: a corpus is missing, or there is too little text to train on.
    """
    statistics = {name: read_statistics(path) for name, path in corpora.items()}
    documents = [text for path in corpora.values() for text in read_documents(path, "train")]
    characters = sum(map(len, documents))
    if characters < settings.batch * settings.sequence * 8:
        raise UserError(
            f"training on {', '.join(corpora)}: {characters} characters in the train splits are less than one batch; "
            "give corpora with more text or lower training.batch"
        )
    tokenizer = train_tokenizer(documents, settings.vocabulary, settings.sequence)
    model, history, seconds = train(settings, tokenizer, documents, checkpoint=checkpoint, report=report)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    losses = pd.DataFrame([asdict(row) for row in history])
    losses["tokens"] = (losses["step"] + 1) * settings.batch * settings.sequence
    with atomic_path(output) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_csv(folder / "loss.csv", losses)
        record = {
            "settings": asdict(settings),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "steps": len(history),
            "tokens": len(history) * settings.batch * settings.sequence,
            "seconds": round(seconds, 1),
            "corpora": {
                name: {key: known[key] for key in ("source", "package", "version") if key in known}
                | {f"{split}_sha256": part["sha256"] for split, part in known["splits"].items()}
                for name, known in statistics.items()
            },
            "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")}
            | {"python": platform.python_version()},
            "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s)",
        }
        # The weights as they were written, rounded to bfloat16.
        record |= held_out(folder, corpora, settings.sequence)
        write_json(folder / "training.json", record)
        write_manifest(folder)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return record


def held_out(model_folder: Path, corpora: Mapping[str, Path], window: int, limit: int | None = None) -> dict[str, Any]:
    """Evaluate a model on the test splits beside a trigram that knows the same train splits and the same tokens.

    The trigram may look back beyond the window, which the model may not: the comparison favours the trigram.

    Returns:
        `held_out`: per corpus the perplexities and the number of predicted tokens; `expert_shares` [layers][experts] of
        all corpora together; `least_expert_share`: the smallest as a fraction of the fair share.

    Raises:
        UserError: a test split shorter than one window.
    """
    tokenizer = load_tokenizer(model_folder)
    network = MixtralForCausalLM.from_pretrained(model_folder, dtype=torch.float32, use_safetensors=True)
    model: Any = batch_experts(network).eval()
    texts = "\n\n".join(read_text(path, "train") for path in corpora.values())
    trigram = Trigram(np.array(encode(tokenizer, texts)), model.config.vocab_size) if texts.strip() else None
    rows: dict[str, dict[str, Any]] = {}
    loads: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for name, path in track(corpora.items(), "corpora"):
        ids = encode(tokenizer, read_text(path, "test"))
        batch = windows(ids, window, limit)
        if not len(batch):
            raise UserError(f"corpus '{name}': its test split has {len(ids)} tokens, less than one window of {window}")
        nll, served = evaluate(model, batch)
        loads.append(served)
        positions = predicted_positions(len(batch), window)
        rows[name] = {"perplexity": float(np.exp(nll)), "tokens": len(positions)}
        if trigram is not None:
            # The first prediction of the stream has one token before it, a trigram needs two.
            rows[name]["trigram_perplexity"] = float(np.exp(trigram.nll(np.array(ids), positions[1:]).mean()))
    total = np.sum(loads, axis=0)
    return {
        "held_out": rows,
        "expert_shares": (total / total.sum(axis=1, keepdims=True)).round(6).tolist(),
        "least_expert_share": least_share(total),
    }

"""The same negative log-likelihood from lm-eval, offline: a second opinion on our scorer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from lumoe.moe.checkpoint.tokenize import prefix_token
from lumoe.moe.checkpoint.tokenizer import load_tokenizer
from lumoe.moe.corpora.corpus import read_documents
from lumoe.moe.engine.engine import Engine
from lumoe.moe.evaluation.perplexity import Logits, rolling_windows, score
from lumoe.progress import track

TASK = "lumoe_documents"


def lm_eval_nll(model: Any, tokenizer: Any, documents: Sequence[str], length: int) -> list[float]:
    """Return each document's negative log-likelihood in nats as lm-eval measures it, on the CPU or where `model` is.

    Args:
        model, tokenizer: a causal language model and its tokenizer from transformers.
        documents: texts, not empty.
        length: tokens per window.
    """
    # Read at import: without them the `datasets` library asks the hub about a local file.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "documents.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
        task = {
            "task": TASK,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(Path(folder) / "cache")},
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "should_decontaminate": False,
            "metric_list": [{"metric": "bits_per_byte"}],
            "metadata": {"version": 1.0},
        }
        (Path(folder) / "documents.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1, add_bos_token=False)
        result = lm_eval.simple_evaluate(
            model=scorer,
            tasks=[TASK],
            task_manager=TaskManager(include_path=folder, include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )
    samples = sorted(result["samples"][TASK], key=lambda sample: int(sample["doc_id"]))
    # A response is the log-likelihood, in some versions inside a one-element list.
    return [-float(np.ravel(sample["filtered_resps"])[0]) for sample in samples]


def compare(logits: Logits, model: Any, tokenizer: Any, documents: Sequence[str], length: int) -> pd.DataFrame:
    """Return one row per document: its tokens and its negative log-likelihood by either scorer."""
    prefix = prefix_token(tokenizer)
    kept = [text for text in documents if tokenizer.encode(text, add_special_tokens=False)]
    theirs = lm_eval_nll(model, tokenizer, kept, length)
    rows = []
    for number, (text, nll) in enumerate(track(list(zip(kept, theirs, strict=True)), "documents")):
        windows = rolling_windows(tokenizer.encode(text, add_special_tokens=False), prefix, length)
        scores = score(logits, windows)
        rows.append(
            {"document": number, "tokens": int(scores.tokens.sum()), "nll": scores.nll.sum(), "nll_lm_eval": nll}
        )
    return pd.DataFrame(rows)


def cross_check(model: Path, corpora: Sequence[Path], documents: int, length: int) -> pd.DataFrame:
    """Score documents of the corpora's test splits with the engine and with lm-eval, both in float32.

    bfloat16's rounding is larger than what is being checked.

    Args:
        documents: of each corpus, at most.
        length: tokens per window.
    """
    from transformers import MixtralForCausalLM

    engine, tokenizer = Engine.load(model, dtype=torch.float32), load_tokenizer(model)
    reference = MixtralForCausalLM.from_pretrained(model, dtype=torch.float32, use_safetensors=True).eval()
    tables = []
    for folder in corpora:
        texts = read_documents(folder, "test")[:documents]
        tables.append(compare(engine.logits, reference, tokenizer, texts, length).assign(corpus=folder.name))
    return pd.concat(tables, ignore_index=True)


def per_corpus(documents: pd.DataFrame) -> pd.DataFrame:
    """Return one row per corpus: nats per token by either scorer and how far they are apart."""
    table = documents.groupby("corpus", sort=False).agg(
        documents=("document", "count"),
        tokens=("tokens", "sum"),
        nll=("nll", "sum"),
        nll_lm_eval=("nll_lm_eval", "sum"),
    )
    return pd.DataFrame(
        {
            "corpus": table.index,
            "documents": table["documents"].to_numpy(),
            "tokens": table["tokens"].to_numpy(),
            "nll_per_token": (table["nll"] / table["tokens"]).to_numpy(),
            "nll_per_token_lm_eval": (table["nll_lm_eval"] / table["tokens"]).to_numpy(),
            "relative_difference": (table["nll"] / table["nll_lm_eval"] - 1).to_numpy(),
            "basis": "measured",
        }
    )

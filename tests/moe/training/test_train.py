"""Training: the fast expert block, the optimiser, the schedule, resumption, and the folder that comes out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM

from lumoe.errors import UserError
from lumoe.moe.checkpoint.manifest import verify_manifest
from lumoe.moe.checkpoint.tokenizer import END_OF_TEXT, encode, train_tokenizer
from lumoe.moe.corpora.corpus import write_corpus
from lumoe.moe.corpora.docstrings import Document
from lumoe.moe.training.expert_batch import batch_experts
from lumoe.moe.training.held_out import evaluate, least_share, predicted_positions, windows
from lumoe.moe.training.make_model import held_out, train_model
from lumoe.moe.training.muon import Muon, orthogonalize
from lumoe.moe.training.stream import batches, joined
from lumoe.moe.training.train import Progress, TrainingSettings, balance_at, balance_loss, new_model, rate_at, train

SETTINGS = TrainingSettings(
    vocabulary=320,
    hidden=32,
    intermediate=64,
    layers=2,
    heads=2,
    key_value_heads=1,
    experts=4,
    sequence=16,
    batch=4,
    steps=6,
    learning_rate=5e-3,
    warmup=2,
    decay=0.5,
    weight_decay=0.1,
    balance=0.02,
    final_balance=0.1,
    seed=3,
)
WORDS = (
    "model",
    "expert",
    "token",
    "router",
    "weights",
    "reads",
    "sends",
    "each",
    "the",
    "of",
    "and",
    "to",
    "lie",
    "where",
)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    generator = np.random.default_rng(0)
    return [" ".join(generator.choice(WORDS, size=40)) + "." for _ in range(80)]


@pytest.fixture(scope="module")
def corpus(documents: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpora") / "words"
    texts = [Document(text, "here") for text in documents]
    write_corpus(folder, {"train": texts[:60], "test": texts[60:]}, "\n\n", {"source": "test"})
    return folder


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    train_model({"words": corpus}, folder, SETTINGS)
    return folder


def small_mixtral(seed: int = 0) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            num_local_experts=8,
            sliding_window=None,
        )
    )


def test_batched_experts_give_the_stock_outputs_and_gradients() -> None:
    ids = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))
    gradients, logits, routers = [], [], []
    for change in (lambda model: model, batch_experts):
        model = change(small_mixtral())
        output = model(input_ids=ids, labels=ids, output_router_logits=True)
        output.loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        logits.append(output.logits)
        routers.append(torch.stack(output.router_logits))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(routers[1], routers[0], rtol=1e-4, atol=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_an_expert_without_tokens_does_not_disturb_the_others() -> None:
    ids = torch.tensor([[5]])
    expected = small_mixtral()(input_ids=ids).logits
    torch.testing.assert_close(batch_experts(small_mixtral())(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 16, 40), (5, 40, 16), (1, 24, 24)])
def test_orthogonalize_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    cores = u.mT @ orthogonalize(matrices) @ vt.mT
    diagonal = cores.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(cores, torch.diag_embed(diagonal), atol=1e-8, rtol=0)
    # Values below a thousandth of the norm are out of the reach of five rounds.
    within = s / torch.linalg.matrix_norm(matrices, keepdim=True).squeeze(-1) > 3e-3
    assert ((diagonal > 0.65) & (diagonal < 1.25))[within].all()


def test_muon_descends_and_leaves_parameters_without_gradient() -> None:
    torch.manual_seed(0)
    target = torch.randn(8, 12)
    used, unused = torch.nn.Parameter(torch.zeros(8, 12)), torch.nn.Parameter(torch.ones(8, 12))
    optimizer = Muon([used, unused], lr=0.1, weight_decay=0.0)
    losses = []
    for _ in range(100):
        loss = (used - target).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.1 * losses[0]
    assert torch.equal(unused, torch.ones(8, 12))


def test_balance_loss_is_one_when_balanced_and_sees_each_layer_by_itself() -> None:
    eye = 8.0 * torch.eye(4).repeat(10, 1)
    assert balance_loss([eye, eye], 1).item() == pytest.approx(1.0, abs=1e-6)
    # Layer 0 uses experts 0 and 1, layer 1 uses 2 and 3: balanced when pooled, not layer by layer.
    halves = [eye[:, [0, 1, 2, 3]][torch.tensor([0, 1] * 10)], eye[torch.tensor([2, 3] * 10)]]
    assert balance_loss(halves, 1).item() == pytest.approx(2.0, rel=0.01)


def test_the_rate_warms_up_stays_and_falls_to_zero() -> None:
    settings = replace(SETTINGS, steps=100, warmup=10, decay=0.4, learning_rate=1.0)
    rates = [rate_at(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:60] == [1.0] * 51
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 40)
    weights = [balance_at(step, settings) for step in range(100)]
    assert weights[:61] == [settings.balance] * 61
    assert weights[60:] == sorted(weights[60:])
    assert weights[-1] == pytest.approx(settings.final_balance, rel=0.03)


def test_the_stream_has_every_document_once_an_epoch_and_skips_exactly(documents: Sequence[str]) -> None:
    tokenizer = train_tokenizer(documents, 320, 16)
    text = joined(documents, range(len(documents)))
    assert text.count(END_OF_TEXT) == len(documents) // 2
    stream = batches(tokenizer, documents, sequence=16, batch=4, seed=0)
    first = [next(stream) for _ in range(60)]  # more than an epoch
    resumed = batches(tokenizer, documents, sequence=16, batch=4, seed=0, skip=47)
    assert all(torch.equal(next(resumed), batch) for batch in first[47:])
    assert first[0].shape == (4, 17)
    other = batches(tokenizer, documents, sequence=16, batch=4, seed=1)
    assert not torch.equal(next(other), first[0])


def test_a_killed_training_resumes_to_the_same_weights(documents: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(documents, SETTINGS.vocabulary, SETTINGS.sequence)
    whole, losses, _ = train(SETTINGS, tokenizer, documents)

    class KilledError(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 3:
            raise KilledError

    state = tmp_path / "state.pt"
    # The first sitting planned another end; before the decay that changes nothing.
    planned = replace(SETTINGS, steps=40)
    with pytest.raises(KilledError):
        train(planned, tokenizer, documents, checkpoint=state, save_every=2, report=kill)
    resumed, again, _ = train(SETTINGS, tokenizer, documents, checkpoint=state)
    assert again == losses
    for name, parameter in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], parameter, rtol=0, atol=0, msg=name)


def test_a_checkpoint_of_another_training_is_not_used(documents: list[str], tmp_path: Path) -> None:
    tokenizer = train_tokenizer(documents, SETTINGS.vocabulary, SETTINGS.sequence)
    state = tmp_path / "state.pt"
    train(SETTINGS, tokenizer, documents, checkpoint=state, save_every=2)
    other = replace(SETTINGS, seed=4)
    _, fresh, _ = train(other, tokenizer, documents)
    _, history, _ = train(other, tokenizer, documents, checkpoint=state)
    assert history == fresh


def test_the_folder_is_a_hugging_face_model_with_its_record(trained: Path, corpus: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(trained)
    assert model.dtype == torch.bfloat16
    assert model.config.num_local_experts == SETTINGS.experts
    ids = tokenizer("the expert reads", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "the expert reads"
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]
    message = [{"role": "user", "content": "the router"}]
    assert tokenizer.apply_chat_template(message, tokenize=False).startswith("the router")
    record = json.loads((trained / "training.json").read_text())
    assert record["settings"] == asdict(SETTINGS)
    assert record["steps"] == len((trained / "loss.csv").read_text().splitlines()) - 1 == SETTINGS.steps
    assert record["parameters"] == model.num_parameters()
    shares = np.array(record["expert_shares"])
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert record["least_expert_share"] == pytest.approx(shares.min() * SETTINGS.experts, abs=1e-4)
    assert held_out(trained, {"words": corpus}, SETTINGS.sequence)["held_out"] == record["held_out"]


def test_training_learns(documents: list[str]) -> None:
    tokenizer = train_tokenizer(documents, SETTINGS.vocabulary, SETTINGS.sequence)
    settings = replace(SETTINGS, steps=60)
    model, history, _ = train(settings, tokenizer, documents)
    uniform = np.log(settings.vocabulary)
    assert history[0].loss == pytest.approx(uniform, rel=0.05)
    assert history[-1].loss < 0.75 * uniform
    fresh = new_model(settings, tokenizer)
    ids = windows(encode(tokenizer, " ".join(documents[:5])), 16)
    assert evaluate(model.eval(), ids)[0] < evaluate(fresh.eval(), ids)[0]


def test_the_mean_loss_is_that_of_the_model_itself() -> None:
    model = small_mixtral().eval()
    batch = windows(list(range(90)), 16)
    assert batch.shape == (5, 16)
    with torch.no_grad():
        expected = model(input_ids=batch, labels=batch).loss.item()
    loss, loads = evaluate(model, batch, at_once=2)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert (loads.sum(axis=1) == 2 * batch.numel()).all()
    assert predicted_positions(2, 4).tolist() == [1, 2, 3, 5, 6, 7]
    assert least_share(np.array([[4, 4], [6, 2]])) == pytest.approx(0.5)


def test_a_damaged_model_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    verify_manifest(copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: its SHA-256"):
        verify_manifest(copy)
    weights.unlink()
    with pytest.raises(UserError, match="missing"):
        verify_manifest(copy)
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="not a manifest"):
        verify_manifest(copy)
    with pytest.raises(UserError, match="no such model folder"):
        verify_manifest(tmp_path / "absent")


def test_too_little_text_is_refused_before_training(tmp_path: Path) -> None:
    write_corpus(tmp_path / "c", {"train": [], "test": [Document("a text", "")]}, "\n\n", {})
    with pytest.raises(UserError, match="less than one batch"):
        train_model({"c": tmp_path / "c"}, tmp_path / "model", SETTINGS)
    assert not (tmp_path / "model").exists()

"""The benchmark at true scale on the CPU, at a tiny shape: the code that a GPU runs, with values asserted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from benchmarks.true_scale import machine, micro, peers, sweep
from benchmarks.true_scale.__main__ import MORE, main
from benchmarks.true_scale.cases import Case, cases, copies, left_out, plan_of
from benchmarks.true_scale.model import (
    RandomWeights,
    SharedFolder,
    build,
    check_host,
    check_kernel,
    check_share,
    make_decoder,
    make_experts,
    read_model,
)
from benchmarks.true_scale.routing import DrawnRouting, expected_misses, first_choice, inclusion, shares_of
from benchmarks.true_scale.table import Table
from lumoe.errors import UserError
from lumoe.files import read_json
from lumoe.moe.architectures.read import read_shape
from lumoe.moe.planning.hardware import Hardware

TINY = {
    "num_hidden_layers": 3,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 96,
}
SHAPE = (3, 4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def shape_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def measured(shape_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole small sweep."""
    folder = tmp_path_factory.mktemp("measured")
    assert main(options(shape_file, folder, "sweep")) == 0
    return folder


def options(shape_file: Path, folder: Path, command: str, *more: str) -> list[str]:
    return [
        command, "--device", "cpu", "--shape", str(shape_file), "--output", str(folder), "--budget", "45%", "70%",
        "--count", "0", "6", "12", "--batch", "1", "3", "--repeats", "2", "--least-seconds", "0.001",
        "--commit", "test", "--host-memory", "8GB", *more,
    ]  # fmt: skip


def test_the_default_shape_is_mixtrals() -> None:
    path = Path(__file__).parents[3] / "data/shapes/mixtral-8x7b.yaml"
    assert read_model(path).plan_shape == (32, 8)
    assert 2 * read_model(path).non_expert_parameters == 3_211_272_192
    assert read_model(path).bytes_full == 93_405_585_408


@pytest.mark.parametrize("name", ["uniform", "zipf:0.5", "zipf:0.8"])
def test_drawn_shares_are_the_stated_ones(name: str) -> None:
    shares = shares_of(name, (4, 8), 2, seed=3)
    assert shares.sum(axis=1) == pytest.approx(2.0)
    routing = DrawnRouting(shares, 2)
    tokens = 40_000
    routing.restart(1, [tokens])
    counts = np.stack([np.bincount(layer.ravel(), minlength=8) for layer in routing.chosen[0]])
    # Each token takes an expert or not: a binomial count. 32 of them within 4.5 deviations: all but one run in 4 500.
    deviation = np.sqrt(tokens * shares * (1 - shares))
    assert (np.abs(counts - tokens * shares) / deviation).max() < 4.5
    if name != "uniform":
        even = tokens * 0.25
        assert (np.abs(counts - even) / np.sqrt(even * 0.75)).max() > 20, (
            "the test tells a skewed routing from an even one"
        )


def test_shares_fall_with_rank_as_stated() -> None:
    row = np.sort(shares_of("zipf:0.5", (1, 8), 2, seed=0)[0])[::-1]
    assert row == pytest.approx(row[0] / np.sqrt(np.arange(1, 9)))
    assert shares_of("uniform", (2, 8), 2, 0) == pytest.approx(np.full((2, 8), 0.25))


def test_first_choices_give_the_shares_of_both() -> None:
    shares = shares_of("zipf:0.7", (3, 8), 2, seed=1)
    chances = first_choice(shares, 2)
    assert chances.sum(axis=1) == pytest.approx(1.0)
    assert inclusion(chances) == pytest.approx(shares, abs=1e-9)
    a, b, c = 0.5, 0.3, 0.2
    first_of_all_pairs = [a + b * a / (1 - b) + c * a / (1 - c), b + a * b / (1 - a) + c * b / (1 - c)]
    assert inclusion(np.array([a, b, c]))[:2] == pytest.approx(first_of_all_pairs)


@pytest.mark.parametrize(("name", "words"), [("even", "unknown"), ("zipf:x", "unknown"), ("zipf:5", "every token")])
def test_a_routing_that_cannot_be_is_refused(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        shares_of(name, SHAPE, 2, 0)
    with pytest.raises(UserError, match="1 or 2 experts"):
        first_choice(np.full((1, 4), 0.75), 3)


def test_misses_are_counted_once_a_step_and_expert() -> None:
    routing = DrawnRouting(shares_of("uniform", SHAPE, 2, 0), 2)
    routing.restart(0, [5, 1])
    resident = np.array([[True, False, True, False]] * 3)
    by_hand = sum(len({int(e) for e in step[layer].ravel()} - {0, 2}) for step in routing.chosen for layer in range(3))
    assert routing.misses(resident) == by_hand > 0
    # Over many draws the mean is the expectation: three layers, two absent experts of share 1/2.
    assert expected_misses(routing.shares, resident, [5, 1]) == pytest.approx(6 * (1 - 0.5**5) + 6 * 0.5)
    found = []
    for seed in range(400):
        routing.restart(seed, [5, 1])
        found.append(routing.misses(resident))
    assert np.mean(found) == pytest.approx(expected_misses(routing.shares, resident, [5, 1]), rel=0.02)


def test_a_step_that_was_not_drawn_is_refused() -> None:
    routing = DrawnRouting(shares_of("uniform", SHAPE, 2, 0), 2)
    routing.restart(0, [5])
    with pytest.raises(ValueError, match="5 was drawn"):
        routing(1)


def test_sweep_has_a_row_for_every_case_that_fits(measured: Path) -> None:
    table = pd.read_csv(measured / "true_scale.csv")
    assert tuple(table.columns) == sweep.COLUMNS
    assert set(table["scheme"]) == {"paper", "overlap", "engine"}
    assert set(table["point"]) >= {"half", "all"}
    assert set(table["batch"]) == {1, 3}
    assert set(table["routing"]) == {"uniform", "zipf:0.5"}
    assert not table.duplicated(list(sweep.KEY)).any()
    assert (table["model"] == "tiny").all()
    assert (table["basis"] == "measured").all()
    # A point between the ends where everything fits is the same as `all`, and is not measured again.
    assert (table.loc[table["point"] != "all", "resident_experts"] < 12).all()
    assert (table.loc[table["point"] == "half", "resident_experts"] == 6).all()


def test_budgets_are_kept_and_plans_took_effect(measured: Path, shape_file: Path) -> None:
    table = pd.read_csv(measured / "true_scale.csv")
    assert (table["bytes_fast"] <= table["budget_bytes"]).all()
    everything = table[table["point"] == "all"]
    assert (everything["bytes_fast"] == everything["budget_bytes"]).all()
    assert (everything["misses"] == 0).all()
    assert (everything["bytes_moved"] == 0).all()
    assert (everything["floor_tokens_per_s"] > everything["decode_tokens_per_s"]).all()
    architecture = read_model(shape_file)
    experts = make_experts(RandomWeights(architecture), 64, CPU, None)
    whole = everything.set_index("quantized_experts")["bytes_fast"].groupby(level=0).first()
    other = 2 * architecture.non_expert_parameters
    for count, found in whole.items():
        assert found == other + count * experts.nbytes(4) + (12 - count) * experts.nbytes(16)


def test_misses_are_near_what_the_shares_say_and_move_their_bytes(measured: Path, shape_file: Path) -> None:
    table = pd.read_csv(measured / "true_scale.csv")
    away = table[table["misses_expected"] > 0]
    assert len(away)
    # Means over two draws of some tens of independent fetches: five deviations of a sum are within 40 % here.
    assert (away["misses"] / away["misses_expected"]).between(0.6, 1.4).all()
    moved = table[(table["misses_in_place"] == 0) & (table["quantized_experts"] == 12) & (table["misses"] > 0)]
    size = make_experts(RandomWeights(read_model(shape_file)), 64, CPU, None).nbytes(4)
    assert (moved["bytes_moved"] == moved["misses"] * size).all()
    steps = {1: [16] + [1] * 15, 3: [48] + [3] * 15}
    assert (table["hits"] + table["misses"] <= [3 * sum(min(4, 2 * n) for n in steps[b]) for b in table["batch"]]).all()


def test_schemes_differ_as_they_should(measured: Path) -> None:
    table = pd.read_csv(measured / "true_scale.csv").set_index([*sweep.KEY])
    assert (table.xs("paper", level="scheme")["misses_in_place"] == 0).all()
    assert (table.xs("overlap", level="scheme")["misses_in_place"] == 0).all()
    half = table.xs(("zipf:0.5", 1, "half"), level=("routing", "batch", "point"))
    # Among equals, the most used experts are resident: fewer misses than a random choice has.
    assert half.loc[("overlap", 0), "misses_expected"] < half.loc[("paper", 0), "misses_expected"]
    assert (table[["prefill_tokens_per_s", "decode_tokens_per_s", "first_token_s"]] > 0).all(axis=None)
    assert table.loc[table["predicted_tokens_per_s"].notna()].xs("paper", level="scheme").shape[0] > 0


def test_a_sweep_goes_on_where_it_stopped(measured: Path, shape_file: Path, tmp_path: Path) -> None:
    for path in measured.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = pd.read_csv(tmp_path / "true_scale.csv")
    table.iloc[:-2].to_csv(tmp_path / "true_scale.csv", index=False)
    assert main(options(shape_file, tmp_path, "sweep", "--minutes", "0")) == MORE  # no time: nothing is measured
    assert len(pd.read_csv(tmp_path / "true_scale.csv")) == len(table) - 2
    assert main(options(shape_file, tmp_path, "sweep")) == 0
    again = pd.read_csv(tmp_path / "true_scale.csv")
    assert again[list(sweep.KEY)].equals(table[list(sweep.KEY)])
    # The draws come from seeds: traffic is the same, time is not.
    assert again["misses"].equals(table["misses"])


def test_micro_benchmarks_make_profiles_of_both_kinds(measured: Path) -> None:
    table = pd.read_csv(measured / "true_scale_micro.csv")
    assert tuple(table.columns) == micro.COLUMNS
    assert {"device memory", "host to device", "expert copy rate", "16-bit expert on the host"} <= set(
        table["quantity"]
    )
    assert (table["value"] >= 0).all()
    profiles = {kind: Hardware.model_validate(read_json(path)) for kind, path in micro.paths(measured).items()}
    assert not profiles["eager"].transfer.overlapped
    assert profiles["recorded"].transfer.overlapped
    assert (profiles["eager"].hidden, profiles["eager"].intermediate) == (64, 128)
    assert {*profiles["eager"].expert} == {4, 16}
    assert {*profiles["eager"].host} == {16}


def test_accelerate_is_timed_on_the_same_shape(shape_file: Path, tmp_path: Path) -> None:
    assert main(options(shape_file, tmp_path, "peers", "--new-tokens", "3")) == 0
    table = pd.read_csv(tmp_path / "true_scale_peers.csv")
    assert tuple(table.columns) == peers.COLUMNS
    assert table["peer"].tolist() == ["accelerate", "accelerate"]
    assert table["budget_bytes"].is_monotonic_increasing
    assert (table["tokens_per_s"] > 0).all()
    assert (table["decode_tokens_per_s"] > 0).all()


def test_random_weights_have_the_spread_they_should(shape_file: Path) -> None:
    weights = RandomWeights(read_model(shape_file))
    experts = make_experts(weights, 64, CPU, None)
    full = experts.record(1, 2, 16).tensors()
    for name in ("w1", "w2", "w3"):
        assert float(full[name].float().std()) == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(full["w1"], full["w3"])
    assert not torch.equal(full["w1"], experts.record(1, 3, 16).tensors()["w1"])
    # w1 of an expert at 4 bits, by multiplying the identity.
    small = experts.build(0, 0, 4, experts.record(0, 0, 4).tensors())
    product = small.matmul(torch.eye(64, dtype=torch.bfloat16), small.w13, 64, small.w13_scales)  # type: ignore[attr-defined]
    assert float(product.float().std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(product.float().mean())) < 0.001
    assert make_decoder(weights, CPU).nbytes == 2 * read_model(shape_file).non_expert_parameters


def test_shared_folder_keeps_experts_for_the_next_command(shape_file: Path, tmp_path: Path) -> None:
    architecture = read_model(shape_file)
    first = make_experts(RandomWeights(architecture, seed=1), 64, CPU, tmp_path / "share")
    wanted = copies([6], SHAPE, 0)
    assert build(first, wanted, lambda _: None) == sum(first.nbytes(bits) for _, _, bits in wanted)
    # Another seed: what the second one finds is the first one's.
    second = make_experts(RandomWeights(architecture, seed=2), 64, CPU, tmp_path / "share")
    assert torch.equal(second.record(0, 0, 16).bytes, first.record(0, 0, 16).bytes)
    (tmp_path / "share" / "layer-00-expert-00-16bit.whole").unlink()  # broken off while it was written
    third = make_experts(RandomWeights(architecture, seed=2), 64, CPU, tmp_path / "share")
    fresh = make_experts(RandomWeights(architecture, seed=2), 64, CPU, None)
    assert torch.equal(third.record(0, 0, 16).bytes, fresh.record(0, 0, 16).bytes)
    assert SharedFolder(tmp_path / "share", lambda *_: None).reserve((0, 0, 16), first.nbytes(16))[1]


def test_copies_are_those_that_plans_ask_for() -> None:
    shape = (32, 8)
    both = copies([0, 64, 128, 192, 256], shape, 0)
    assert len(both) == 512
    sizes = {4: 99_090_432, 16: 352_321_536}
    assert sum(sizes[bits] for _, _, bits in both) == 115_561_463_808  # 107.6 GiB
    only = copies([256], shape, 0)
    assert sum(bits == 4 for *_, bits in only) == 256
    assert sum(bits == 16 for *_, bits in only) == 16  # for the micro-benchmarks
    with pytest.raises(UserError, match="the model has 256 experts"):
        copies([257], shape, 0)


def test_room_is_checked_beforehand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"115\.6 GB and 6\.4 GB are kept free, but there are 64\.0 GB"):
        check_host(115_561_463_808, 64 * 10**9)
    check_host(115_561_463_808, 128 * 2**30)
    with pytest.raises(UserError, match="remount it larger"):
        check_share(tmp_path / "share", 1 << 60)
    check_share(tmp_path / "share", 1 << 20)
    assert check_kernel(CPU) < 0.01


def test_cases_begin_with_the_most_telling() -> None:
    budgets = [26_280_000_000, 30_500_000_000, 53_030_000_000]
    found = cases(budgets, [0, 256], ["uniform", "zipf:0.5"], [1, 4])
    assert [case.point for case in found[:24:6]] == ["26280000000", "53030000000", "half", "all"]
    assert {(case.routing, case.batch) for case in found[:30]} == {("uniform", 1)}
    assert {case.point for case in found[30:]} == {"26280000000", "53030000000", "half", "all"}
    assert len(found) == len(set(found)) == 30 + 2 * 24


@pytest.mark.parametrize("scheme", ["paper", "overlap"])
def test_plans_of_the_papers_sweep(scheme: str) -> None:
    shape = read_shape("mixtral-8x7b")
    sizes, other = {4: 99_090_432, 16: 352_321_536}, 2 * shape.non_expert_parameters
    shares = shares_of("zipf:0.5", (32, 8), 2, 0)

    def plan(point: str, count: int) -> tuple[int, int]:
        case = Case(scheme, "zipf:0.5", 1, point, count)  # type: ignore[arg-type]
        found, budget = plan_of(case, (32, 8), sizes, other, shares, 0)
        buffer = case.swap_buffers * (sizes[16] if count < 256 else sizes[4])
        used = other + found.bytes_resident(sizes) + (0 if found.resident.all() else buffer)
        assert used <= budget
        assert found.quantized_experts == count
        return found.resident_experts, budget

    buffers = 1 if scheme == "paper" else 2
    expected = (26_280_000_000 - other - buffers * sizes[16]) // sizes[16]
    assert plan("26280000000", 0) == (expected, 26_280_000_000)
    assert plan("53030000000", 256) == (256, other + 256 * sizes[4])
    assert plan("half", 128)[0] == 128
    assert plan("all", 64) == (256, other + 64 * sizes[4] + 192 * sizes[16])


def test_what_is_not_measured_says_why() -> None:
    shape = read_shape("mixtral-8x7b")
    shares = shares_of("uniform", (32, 8), 2, 0)
    sizes, other = {4: 99_090_432, 16: 352_321_536}, 2 * shape.non_expert_parameters

    def reason(point: str, count: int) -> str | None:
        case = Case("paper", "uniform", 1, point, count)
        return left_out(case, *plan_of(case, (32, 8), sizes, other, shares, 0), 77 * 10**9)

    assert reason("26280000000", 0) is None
    assert reason("53030000000", 256) == "everything fits: the same as 'all'"
    assert reason("all", 0) == "needs 93.4 GB, the device has room for 77.0 GB"
    assert reason("all", 256) is None


def test_a_table_tells_its_rows_apart(tmp_path: Path) -> None:
    table = Table(tmp_path / "t.csv", ("point", "count", "value"), ("point", "count"))
    table.add({"point": "1000", "count": 0, "value": 1.5})
    table.add({"point": "half", "count": 0, "value": 2.5})
    again = Table(tmp_path / "t.csv", ("point", "count", "value"), ("point", "count"))
    assert {"point": "1000", "count": 0} in again
    assert {"point": "1000", "count": 1} not in again
    assert again.rows["value"].tolist() == [1.5, 2.5]


def test_versions_and_commit_are_written_down() -> None:
    found = machine.describe("tiny", CPU, "abc")
    assert tuple(found) == machine.COLUMNS
    assert (found["model"], found["commit"], found["torch"]) == ("tiny", "abc", torch.__version__)
    assert found["python"].startswith("3.")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_default_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="torch finds no GPU here"):
        main(["check", "--output", str(tmp_path)])
    assert not any(tmp_path.iterdir())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")
def test_sweep_on_a_gpu(shape_file: Path, tmp_path: Path) -> None:
    arguments = [word if word != "cpu" else "cuda" for word in options(shape_file, tmp_path, "sweep")]
    assert main(arguments) == 0
    table = pd.read_csv(tmp_path / "true_scale.csv")
    assert (table["bytes_fast"] <= table["budget_bytes"]).all()
    assert (table["allocated_bytes"] > 0).all()
    assert (table["driver"].astype(str) != "").all()

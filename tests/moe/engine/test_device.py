"""The engine on a device: tiers, kernels and decoder that a GPU runs on, here on the CPU; CUDA's part with a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lumoe.errors import UserError
from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.device import device_of
from lumoe.moe.engine.engine import Engine
from lumoe.moe.engine.open import EngineConfig, OpenedModel, open_on_device
from lumoe.moe.kernels.affine import nearest
from lumoe.moe.kernels.torch_kernels import inner_tiles, int4_matmul, int4_packed, int4_supported, pack_int4
from lumoe.moe.model.cuda_graphs import CudaGraphs, recorder_for
from lumoe.moe.model.decoder import Decoder
from lumoe.moe.model.expert import MATRICES, DenseExpert
from lumoe.moe.model.static_decoder import StaticDecoder
from lumoe.moe.offload.device_tier import CudaStreams, DeviceTier, pin_memory
from lumoe.moe.offload.host_experts import DeviceExperts, checkpoint_writer
from lumoe.moe.offload.miss_cost import MissCosts, split_misses
from lumoe.moe.offload.storage import PageBuffer
from lumoe.moe.planning.cost import seconds_at
from lumoe.moe.planning.hardware import Hardware, Seconds, Sourced, Transfer
from lumoe.moe.planning.plan import Plan
from lumoe.moe.quantization.folder import QuantizedExperts

SHAPE = (3, 4)
IDS = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(5))
CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")],
)
DEVICES = pytest.mark.parametrize("device", ["cpu", CUDA])


def outputs(engine: Engine) -> torch.Tensor:
    """Logits of a prefill of two sequences, of a decode step of both, and of one of the second alone: float32."""
    cache = engine.cache(2, 16)
    parts = [
        engine.step(IDS, cache, last_only=False),
        engine.step(IDS[:, :1], cache),
        engine.step(IDS[1:, :1], cache, [1]),
        engine.step(IDS[:, 1:2], cache, [1, 0]),
        engine.step(IDS[:, 2:3], cache),
    ]
    return torch.cat([part.flatten().float().cpu() for part in parts])


def on_device(
    model: Path,
    quantized: Path | None = None,
    plan: Plan | None = None,
    budget_bytes: int | None = None,
    **settings: Any,
) -> Engine:
    """Open a model as on a GPU, on whatever device; `Engine.load` would serve a processor from files."""
    folders = [QuantizedExperts(quantized)] if quantized else []
    return Engine(open_on_device(Checkpoint(model), folders, EngineConfig(**settings)), plan, budget_bytes)


def plan_of(bits: list[int], resident: list[bool]) -> Plan:
    return Plan(np.array(bits).reshape(SHAPE), np.array(resident).reshape(SHAPE))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@DEVICES
def test_logits_are_those_of_the_engine_on_the_processor(model_f32: Path, device: str) -> None:
    engine = on_device(model_f32, device=device, dtype=torch.float32)
    expected = outputs(Engine.load(model_f32, dtype=torch.float32))
    assert relative_error(outputs(engine), expected) < (1e-5 if device == "cpu" else 1e-3)  # matrix units round inputs
    assert (
        engine.generate(IDS, 5).cpu().tolist() == Engine.load(model_f32, dtype=torch.float32).generate(IDS, 5).tolist()
    )


def traced(piece: Callable[[], Any]) -> Callable[[], Any]:
    """Record a piece as a CUDA graph does: its operators on its memory, none of its Python, results in one place."""
    results: list[Any] = []
    graph = make_fx(lambda: results.append(piece()) or results[0])()
    kept = results[0] if isinstance(results[0], tuple) else (results[0],)

    def replay() -> Any:
        found = graph()
        for old, new in zip(kept, found if isinstance(found, tuple | list) else (found,), strict=True):
            old.copy_(new)
        return results[0]

    return replay


def test_recorded_steps_give_the_logits_of_steps_that_are_not(model_f32: Path) -> None:
    plain = on_device(model_f32, device="cpu", dtype=torch.float32)
    recorded = on_device(model_f32, device="cpu", dtype=torch.float32)
    recorded.decoder.recorder = traced  # type: ignore[attr-defined]
    assert relative_error(outputs(recorded), outputs(plain)) < 1e-6  # tracing takes attention apart
    cache = recorded.cache(2, 16)
    recorded.step(IDS, cache)
    for _ in range(2):
        recorded.step(IDS[:, :1], cache)
    assert list(cache.steps) == [(0, 1)]  # type: ignore[attr-defined]


@DEVICES
def test_a_sliding_window_hides_the_same_keys(tmp_path: Path, device: str) -> None:
    from tiny_mixtral import make_model

    model = make_model(tmp_path / "model", torch.float32, sliding_window=5)
    expected = outputs(Engine.load(model, dtype=torch.float32))
    assert relative_error(outputs(on_device(model, device=device, dtype=torch.float32)), expected) < 1e-3


@DEVICES
@pytest.mark.parametrize("bits", [4, 16])
def test_bfloat16_experts_compute_what_their_weights_say(
    model_bf16: Path, quantized: dict[int, Path], device: str, bits: int
) -> None:
    engine = on_device(model_bf16, quantized[4], Plan.uniform(*SHAPE, bits, resident=False), device=device)
    checkpoint, folder = Checkpoint(model_bf16), QuantizedExperts(quantized[4])
    hidden = torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    for layer, index in ((0, 0), (2, 3)):
        if bits == 16:
            weights = {name: w.float() for name, w in zip(MATRICES, checkpoint.expert(layer, index), strict=True)}
        else:
            weights = {name: folder.dequantized(layer, index, name) for name in MATRICES}
        expected = DenseExpert(weights)(hidden.float())
        for _, expert in engine.store.fetch(layer, [index]):
            assert relative_error(expert(hidden.to(engine.device)).float().cpu(), expected) < 0.02


@DEVICES
@pytest.mark.parametrize("overlapped", [True, False])
@pytest.mark.parametrize("policy", ["static", "lru"])
@pytest.mark.parametrize("swap", [1, 2])
def test_residency_never_changes_a_bit(
    model_bf16: Path, quantized: dict[int, Path], device: str, overlapped: bool, policy: str, swap: int
) -> None:
    bits = [4, 16, 16, 4] * 3
    near = on_device(model_bf16, quantized[4], plan_of(bits, [True] * 12), device=device)
    far = make_engine(
        model_bf16, quantized, plan_of(bits, [True, False, False, False] * 3), device, overlapped, policy, swap
    )
    expected = outputs(near)
    for _ in range(3):
        assert torch.equal(outputs(far), expected)
    assert far.store.bytes_fast <= far.store.budget_bytes
    assert far.metrics()["misses"] > 0
    assert far.metrics()["bytes_moved"] > far.store.bytes_fast - 2 * far.store.source.nbytes(16)


def make_engine(
    model: Path,
    quantized: dict[int, Path],
    plan: Plan,
    device: str,
    overlapped: bool = True,
    policy: str = "static",
    swap: int = 2,
    costs: MissCosts | None = None,
) -> Engine:
    place, checkpoint, folder = device_of(device), Checkpoint(model), QuantizedExperts(quantized[4])
    experts = DeviceExperts(
        checkpoint.architecture,
        {4: folder.group_size},
        checkpoint_writer(checkpoint, [folder], place),
        place,
        pin=pin_memory if place.type == "cuda" else None,
    )
    decoder = StaticDecoder(Decoder(checkpoint, torch.bfloat16), place, recorder_for(place))
    config = EngineConfig(policy=policy, swap_buffers=swap)  # type: ignore[arg-type]
    return Engine(OpenedModel(decoder, experts, DeviceTier(experts, overlapped, costs), config), plan)


@DEVICES
def test_changed_plan_equals_a_fresh_one_and_keeps_to_the_larger_budget(
    model_bf16: Path, quantized: dict[int, Path], device: str
) -> None:
    first, second = plan_of([16] * 12, [True] * 6 + [False] * 6), plan_of([4] * 6 + [16] * 6, [True] * 12)
    engine = make_engine(model_bf16, quantized, first, device)
    outputs(engine)
    engine.reconfigure(second)
    fresh = make_engine(model_bf16, quantized, second, device)
    assert torch.equal(outputs(engine), outputs(fresh))
    assert engine.store.resident().all()
    assert engine.bytes_fast == fresh.bytes_fast == engine.model.bytes_needed(second)


@DEVICES
def test_a_miss_of_an_expert_that_is_to_stay_brings_it_to_its_place(
    model_bf16: Path, quantized: dict[int, Path], device: str
) -> None:
    everything = plan_of([16] * 6 + [4] * 6, [True] * 12)
    engine = make_engine(model_bf16, quantized, plan_of([4] * 12, [False] * 12), device)
    engine.store.switch(everything)  # and nothing is loaded but by its misses
    assert torch.equal(outputs(engine), outputs(make_engine(model_bf16, quantized, everything, device)))
    while engine.store.load_next():
        pass
    assert engine.store.resident().all()


@DEVICES
def test_misses_that_compute_in_host_memory_move_nothing_and_change_little(
    model_bf16: Path, quantized: dict[int, Path], device: str
) -> None:
    plan = plan_of([16] * 8 + [4] * 4, [False] * 12)
    always = costs(link_s=1.0, host_s=0.0, sizes={4: 1, 16: 1})
    engine = make_engine(model_bf16, quantized, plan, device, costs=always)
    result = outputs(engine)
    if device == "cpu":  # the same arithmetic in the same place: to the bit
        assert torch.equal(result, outputs(make_engine(model_bf16, quantized, plan, device)))
    assert torch.isfinite(result).all()
    found = engine.metrics()
    four_bit = int(engine.store.uses()[1][2].sum())
    assert found["misses"] == engine.store.uses()[1].sum() > 0
    assert found["misses_in_place"] == found["misses"] - four_bit  # only 16-bit experts lie there as they compute
    assert found["bytes_moved"] == four_bit * engine.store.source.nbytes(4)


def costs(link_s: float, host_s: float, sizes: dict[int, int]) -> MissCosts:
    one = lambda value: Sourced(value=value, source="test", confidence="assumed")  # noqa: E731
    flat = lambda value: Seconds(tokens=[1], seconds=[value], source="test", confidence="assumed")  # noqa: E731
    hardware = Hardware(
        name="test", device="test", fast_bytes=one(1), dense=flat(0.0), host={16: flat(host_s)},
        hidden=1, intermediate=1,        transfer=Transfer(latency_s=one(link_s), bytes_per_s=one(1e30)),
    )  # fmt: skip
    return MissCosts(hardware, sizes)


def test_misses_are_split_so_that_link_and_host_are_done_early() -> None:
    even = costs(link_s=2.0, host_s=1.5, sizes={4: 1, 16: 1})
    # host 1.5; link 2.0 against host 3.0; host 3.0 against link 4.0; link 4.0 against host 4.5
    assert split_misses([16, 16, 16, 16], [1] * 4, even) == [True, False, True, False]
    assert split_misses([4, 4], [1, 1], even) == [False, False]
    assert split_misses([16], [1], costs(1.0, 2.0, {16: 1})) == [False]
    assert split_misses([], [], even) == []


def test_time_in_host_memory_depends_on_the_tokens() -> None:
    found = costs(1.0, 1.0, {16: 1})
    rising = Seconds(tokens=[1, 16], seconds=[0.5, 8.0], source="test", confidence="assumed")
    hardware = found.hardware.model_copy(update={"host": {16: rising}})
    assert split_misses([16], [1], MissCosts(hardware, {16: 1})) == [True]
    assert split_misses([16], [16], MissCosts(hardware, {16: 1})) == [False]
    assert float(seconds_at(rising, 16)) == 8.0


@DEVICES
@pytest.mark.parametrize(("outputs_", "inputs", "group"), [(64, 128, 64), (128, 64, 32), (256, 256, 128)])
def test_int4_product_is_that_of_the_weights_it_stands_for(device: str, outputs_: int, inputs: int, group: int) -> None:
    place = device_of(device)
    generator = torch.Generator().manual_seed(1)
    matrix = nearest(torch.randn(outputs_, inputs, generator=generator), 4, group)
    hidden = torch.randn(3, inputs, generator=generator).bfloat16()
    packed, scales = pack_int4(matrix, place)
    expected_layout = int4_packed(place, outputs_, inputs)
    assert (packed.dtype, tuple(packed.shape)) == (expected_layout.dtype, expected_layout.shape)
    assert expected_layout.nbytes == outputs_ * inputs // 2
    found = int4_matmul(place)(hidden.to(place), packed.to(place), group, scales.to(place)).float().cpu()
    assert relative_error(found, hidden.float() @ matrix.dequantize().t()) < 0.01


def test_layout_of_packed_codes_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    assert [inner_tiles(size) for size in (4096, 64, 96, 48)] == [8, 4, 2, 0]
    assert int4_packed(gpu, 28672, 4096) == (torch.int32, (3584, 32, 32, 4))
    assert int4_packed(gpu, 28672, 4096).nbytes == int4_packed(torch.device("cpu"), 28672, 4096).nbytes
    assert int4_supported(gpu, 4096, 14336, 64)
    assert not int4_supported(gpu, 4096, 14336, 48)
    assert not int4_supported(gpu, 12, 4096, 64)


def test_sizes_of_mixtrals_experts_on_a_gpu() -> None:
    from lumoe.moe.architectures.read import read_shape

    experts = DeviceExperts(read_shape("mixtral-8x7b"), {4: 64}, lambda *_: None, torch.device("cuda"))
    assert experts.nbytes(16) == 352_321_536
    assert experts.nbytes(4) == 99_090_432  # codes 88 080 384, scales and zeros 11 010 048
    assert experts.precisions == (4, 16)


def test_what_a_device_has_no_kernel_for_is_refused(model_bf16: Path, quantized: dict[int, Path]) -> None:
    with pytest.raises(UserError, match=r"no kernel for 4-bit experts.*float32"):
        on_device(model_bf16, quantized[4], device="cpu", dtype=torch.float32)
    engine = on_device(model_bf16, device="cpu")
    with pytest.raises(UserError, match="no experts at 4 bits on cpu; there are 16"):
        engine.reconfigure(Plan.uniform(*SHAPE, 4))
    with pytest.raises(UserError, match=r"does not hold the .* bytes outside the experts"):
        on_device(model_bf16, device="cpu", budget_bytes=1)


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:63"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"device '{name}'"):
        device_of(name)


@pytest.fixture
def cuda() -> Iterator[torch.device]:
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU on this machine")
    yield torch.device("cuda", 0)
    torch.cuda.empty_cache()


@pytest.mark.cuda
def test_pinned_pages_are_pinned_and_copied_beside_computation(cuda: torch.device) -> None:
    memory = PageBuffer(64 << 20)
    memory.bytes.random_(0, 256)
    undo = pin_memory(memory.bytes)
    try:
        assert memory.bytes.is_pinned()
        streams, target = CudaStreams(cuda), torch.zeros(64 << 20, dtype=torch.uint8, device=cuda)
        square = torch.randn(4096, 4096, device=cuda)
        for _ in range(20):
            square = square @ square / 64
        before = streams.mark()
        streams.copy(target, memory.bytes, before)
        assert torch.equal(target.cpu(), memory.bytes)
    finally:
        undo()
    assert not memory.bytes.is_pinned()


@pytest.mark.cuda
def test_a_copy_waits_for_computation_that_reads_its_target(cuda: torch.device) -> None:
    streams, size = CudaStreams(cuda), 1 << 26
    target, source = torch.ones(size, device=cuda), torch.full((size,), 2.0).pin_memory()
    square = torch.randn(8192, 8192, device=cuda)
    for _ in range(10):
        square = square @ square / 90
    total = target.sum()  # stands behind the products in the queue
    streams.copy(target, source, streams.mark())
    assert float(total) == size
    assert float(target.sum()) == 2 * size


@pytest.mark.cuda
def test_recorded_pieces_read_what_lies_in_their_memory(cuda: torch.device) -> None:
    source = torch.zeros(4, device=cuda)
    record = CudaGraphs(cuda)
    first = record(lambda: source + 1)
    middle = first()
    second = record(lambda: middle * 10)
    for value in (0.0, 3.0):
        source.fill_(value)
        first()
        assert second().tolist() == [10 * (value + 1)] * 4


@pytest.mark.cuda
def test_expert_in_gpu_memory_counts_its_bytes(cuda: torch.device) -> None:
    from lumoe.moe.architectures.read import read_shape

    shape = read_shape("mixtral-8x7b")

    def write(layer: int, expert: int, bits: int, tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.normal_(0, 0.02)

    experts = DeviceExperts(shape, {}, write, cuda, pin=pin_memory)  # type: ignore[arg-type]
    tier = DeviceTier(experts)
    before = torch.cuda.memory_allocated(cuda)
    room = tier.allocate(experts.nbytes(16))
    assert torch.cuda.memory_allocated(cuda) - before == 352_321_536
    tier.submit(room, tier.bring, room, experts.record(0, 0, 16)).result()
    hidden = torch.randn(2, shape.hidden_size, device=cuda, dtype=torch.bfloat16)
    found = experts.build(0, 0, 16, room.tensors(experts.record(0, 0, 16)))(hidden)
    here = DenseExpert(experts.record(0, 0, 16).tensors())(hidden.cpu())
    assert relative_error(found.float().cpu(), here.float()) < 0.02

"""A layer's attention, and its norm and router, in one call of kernels each: what torch's operators compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_families import MODELS, make

from lumoe.moe.checkpoint.weights import Checkpoint
from lumoe.moe.engine.engine import Engine
from lumoe.moe.kernels.library import attention_library, dense_library, router_library
from lumoe.moe.model.attention import Positions
from lumoe.moe.model.decoder import Decoder, Layer
from lumoe.moe.model.kv_cache import KVCache
from lumoe.moe.model.moe_layer import MoELayer
from lumoe.moe.model.norm import Norm
from lumoe.moe.model.one_token import token_router
from lumoe.moe.model.router import Router

LIBRARIES = (attention_library, dense_library, router_library)
pytestmark = pytest.mark.skipif(any(library() is None for library in LIBRARIES), reason="no compiled kernels here")
# Sinks, a clip, layer norms, latent vectors, heads of other widths, gated outputs: torch's operators compute these.
OPERATORS_ATTEND = {"gpt_oss", "olmoe-clipped", "phimoe", "deepseek_v2", "qwen3_next"}
OPERATORS_ROUTE = {"phimoe", "deepseek_v3", "glm4_moe", "deepseek_v2-groups", "dots1"}
ATTEND = (
    "mixtral", "mixtral-window-linear", "qwen3_moe", "qwen3_moe-yarn-tied", "qwen2_moe", "olmoe", "granitemoe",
    "granitemoeshared", "glm4_moe", "dots1", "ernie4_5_moe", "aria_text",
)  # fmt: skip
ROUTE = ("mixtral", "qwen2_moe", "granitemoe", "glm4_moe-one-group", "ernie4_5_moe", "gpt_oss", "deepseek_v2-greedy")


def decoders(name: str, folder: Path) -> tuple[Decoder, Decoder]:
    """Return a random model in bfloat16, with kernels, and the same weights in float32, without."""
    make(name, folder, torch.bfloat16)
    found = Checkpoint(folder)
    return Decoder(found, torch.bfloat16), Decoder(found, torch.float32, use_native=False)


def filled(decoder: Decoder, lengths: list[int], bits: int) -> KVCache:
    """Return a cache with the same random keys and values for any decoder of a model."""
    a, draw = decoder.architecture, torch.Generator().manual_seed(1)
    cache = decoder.cache(len(lengths), max(lengths) + 1, bits)
    for slot, length in enumerate(lengths):
        cache.reserve(slot, length)
        for layer in range(a.num_hidden_layers):
            shape = (1, length, a.num_key_value_heads, a.head_width)
            keys, values = (torch.randn(shape, generator=draw).bfloat16().to(decoder.dtype) for _ in range(2))
            cache.append(layer, cache.places([slot], length), keys, values)
        cache.lengths[slot] = length
    return cache


@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("name", ATTEND)
def test_attention_is_that_of_operators(name: str, bits: int, tmp_path: Path) -> None:
    fast, exact = decoders(name, tmp_path)
    lengths, slots = [1, 40, 17, 129], [2, 0, 3, 1]
    found = {decoder: filled(decoder, lengths, bits) for decoder in (fast, exact)}
    draw = torch.Generator().manual_seed(0)
    for ours, theirs in zip(fast.layers, exact.layers, strict=True):
        hidden = torch.randn((4, 1, fast.architecture.hidden_size), generator=draw).bfloat16()
        wide = hidden.float()
        positions = Positions(found[exact], slots, 1, exact.rotary)
        expected = exact.add(wide, theirs.mixer(theirs.before(wide), found[exact], positions))
        step = Positions(found[fast], slots, 1, fast.rotary).step(found[fast])
        assert ours.attention is not None
        assert step is not None
        ours.attention(hidden, step)
        # Rounded to 2^-9 of their size are the norm, the projections, what is found, and the sum; at 8 bits, one that
        # is rounded to another code is a 127th of a head's largest value away.
        assert (hidden.float() - expected).norm() <= 2 ** (-7 if bits == 16 else -6) * expected.norm()
    for layer in range(len(fast.layers)):
        places = (cache.places(slots, 1) for cache in found.values())
        for ours, theirs in zip(*map(KVCache.read, found.values(), (layer, layer), places), strict=True):
            largest = theirs.abs().amax(-1, keepdim=True)
            assert ((ours.float() - theirs).abs() <= 2**-6 * largest).all()


@pytest.mark.parametrize("name", ATTEND)
def test_attention_of_a_sequence_is_the_same_bits_in_company(name: str, tmp_path: Path) -> None:
    decoder, _ = decoders(name, tmp_path)
    lengths = [5, 77, 30]
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn((3, 1, decoder.architecture.hidden_size), generator=draw).bfloat16()
    layer, found = decoder.layers[0], []
    for groups in ([[0, 1, 2]], [[0], [1], [2]]):
        cache, rows = filled(decoder, lengths, 16), []
        for slots in groups:
            part = hidden[slots].clone()
            step = Positions(cache, slots, 1, decoder.rotary).step(cache)
            assert layer.attention is not None
            assert step is not None
            layer.attention(part, step)
            rows.append(part)
        found.append(torch.cat(rows))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ROUTE)
def test_a_familys_router_is_that_of_operators(name: str, tmp_path: Path) -> None:
    fast, _ = decoders(name, tmp_path)
    hidden = torch.randn((33, fast.architecture.hidden_size), generator=torch.Generator().manual_seed(0)).bfloat16()
    for layer in fast.layers:
        if isinstance(layer.feed, MoELayer):
            assert layer.router is not None
            agree(layer.between, layer.feed.router, hidden)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 5),
    hidden=st.sampled_from([32, 96, 256]),
    experts=st.integers(1, 70),
    wanted=st.integers(1, 8),
    bias=st.booleans(),
    correction=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_any_router_is_that_of_operators(
    model_bf16: Path,
    score: str,
    tokens: int,
    hidden: int,
    experts: int,
    wanted: int,
    bias: bool,
    correction: bool,
    wide: bool,
    seed: int,
) -> None:
    draw, kind = torch.Generator().manual_seed(seed), torch.float32 if wide else torch.bfloat16
    s = Decoder(Checkpoint(model_bf16), torch.float32).architecture.router
    s = s.model_copy(update={"score": score, "scale": 1.5, "least_sum": 1e-3, "normalize": seed % 2 == 0})
    s = s.model_copy(update={"float32": wide})
    router = Router(
        (torch.randn((experts, hidden), generator=draw) / hidden**0.5).to(kind), min(wanted, experts), s,
        torch.randn(experts, generator=draw).to(kind) if bias else None,
        torch.rand(experts, generator=draw) if correction else None,
    )  # fmt: skip
    agree(
        Norm(torch.rand(hidden, generator=draw).to(kind), 1e-5),
        router,
        torch.randn((tokens, hidden), generator=draw).bfloat16(),
    )


def agree(norm: Norm, router: Router, hidden: torch.Tensor) -> None:
    """Hold norm and router in one call to their operators; of scores that are nearly equal either may be chosen."""
    both = token_router(norm, router)
    assert both is not None
    normed, weights, chosen = both(hidden)
    expected = norm(hidden)
    assert torch.equal(normed, expected)
    _, indices = router(expected)
    s, bias = router.settings, 0.0 if router.bias is None else router.bias.double()
    logits = expected.double() @ router.gate.double().t() + bias
    scores = logits.sigmoid() if s.score == "sigmoid" else logits.softmax(-1)
    # Logits are rounded as the router has them: to bfloat16, or after sums in float32.
    slack = (1e-5 if s.float32 else 2**-8) * (1 + float(logits.abs().max()))
    found = scores.gather(1, chosen)
    total = found.sum(-1, keepdim=True).clamp(min=s.least_sum) if s.normalize else 1.0
    assert torch.allclose(weights.double(), found / total * s.scale, rtol=2**-8 + 2 * slack, atol=1e-6)
    judged = scores if router.correction is None else scores + router.correction
    reached, best = (judged.gather(1, each) for each in (chosen, indices))
    assert torch.allclose(reached, best, rtol=2 * slack, atol=1e-6)
    assert all(len(set(row)) == len(row) for row in chosen.tolist())


def test_what_kernels_do_not_compute_is_left_to_operators(tmp_path: Path) -> None:
    attend, route = set(), set()
    for name in OPERATORS_ATTEND | OPERATORS_ROUTE:
        assert name in MODELS
        decoder, _ = decoders(name, tmp_path / name)
        layers: list[Layer] = [layer for layer in decoder.layers if isinstance(layer.feed, MoELayer)]
        attend |= {name} if all(layer.attention is None for layer in layers) else set()
        route |= {name} if all(layer.router is None for layer in layers) else set()
    assert attend >= OPERATORS_ATTEND
    assert route >= OPERATORS_ROUTE


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "glm4_moe"])
def test_decoding_with_kernels_is_as_near_to_float32_as_without(name: str, tmp_path: Path) -> None:
    """Whole models: logits of the same tokens, one after another, in two sequences of unlike lengths."""
    make(name, tmp_path, torch.bfloat16)
    ids, found = torch.randint(3, 97, (2, 24), generator=torch.Generator().manual_seed(0)), []
    for dtype, native in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True)):
        engine = Engine.load(tmp_path, dtype=dtype)
        if not native:
            decoder = engine.decoder
            assert isinstance(decoder, Decoder)
            decoder.layers = [replace(layer, attention=None, router=None) for layer in decoder.layers]
        cache = engine.cache(2, 32)
        engine.step(ids[:1, :5], cache, [0])
        engine.step(ids[1:, :11], cache, [1])
        steps = [engine.step(ids[:, place : place + 1], cache) for place in range(11, 24)]
        found.append(torch.cat(steps, dim=1).float())
    exact, operators, kernels = found
    # A near tie between two experts may go either way in bfloat16: the median token is held to.
    errors = [(part - exact).norm(dim=-1).flatten().median() for part in (operators, kernels)]
    assert errors[1] <= 1.2 * errors[0]

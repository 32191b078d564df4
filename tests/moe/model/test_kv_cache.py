"""Keys and values in blocks: attention over them is torch's attention over whole ones, and memory goes back."""

from __future__ import annotations

import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.kernels.library import attention_library
from lumoe.moe.model.kv_cache import CacheFullError, KVCache
from lumoe.moe.planning.shape import KV_BLOCK

Stored = tuple[torch.Tensor, torch.Tensor]


def architecture(heads: int = 4, groups: int = 2, width: int = 16, layers: int = 2) -> Architecture:
    return Architecture(
        model_type="mixtral", num_hidden_layers=layers, num_local_experts=2, num_experts_per_tok=1,
        hidden_size=heads * width, intermediate_size=64, num_attention_heads=heads, num_key_value_heads=groups,
        vocab_size=10,
    )  # fmt: skip


def filled(cache: KVCache, a: Architecture, lengths: list[int], layer: int) -> list[Stored]:
    """Append random keys and values of each sequence; return them as they came."""
    stored = []
    for slot, length in enumerate(lengths):
        cache.reserve(slot, length)
        one = [torch.randn(1, length, a.num_key_value_heads, a.head_width).to(cache.dtype) for _ in range(2)]
        cache.append(layer, cache.places([slot], length), one[0], one[1])
        cache.lengths[slot] = length
        stored.append((one[0], one[1]))
    return stored


def attended(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None) -> torch.Tensor:
    """Torch's attention of one token's heads `[heads, width]` over `[tokens, groups, width]`, in float64."""
    shared = query.shape[0] // keys.shape[1]
    first = 0 if window is None else max(0, len(keys) - window)
    key, value = (part[first:].double().transpose(0, 1).repeat_interleave(shared, dim=0) for part in (keys, values))
    return functional.scaled_dot_product_attention(query.double().unsqueeze(1), key, value).squeeze(1)


@pytest.mark.skipif(attention_library() is None, reason="no compiled kernels here")
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 1200), min_size=1, max_size=4),
    groups=st.integers(1, 3),
    shared=st.integers(1, 7),
    width=st.sampled_from([16, 48, 128]),
    window=st.none() | st.integers(1, 700),
    seed=st.integers(0, 99),
)
def test_the_kernel_attends_as_torch_does(
    bits: int,
    dtype: torch.dtype,
    lengths: list[int],
    groups: int,
    shared: int,
    width: int,
    window: int | None,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    a, heads = architecture(groups * shared, groups, width), groups * shared
    cache = KVCache(a, len(lengths), 1300, dtype, bits)
    filled(cache, a, lengths, layer=1)
    slots = list(range(len(lengths)))[::-1]
    for slot in slots:
        cache.reserve(slot, lengths[slot] + 1)
    mixed = torch.randn(len(slots), 1, heads + 2 * groups, width).to(dtype)
    places = cache.places(slots, 1)
    found = cache.decode(1, places, mixed[:, :, : heads + groups], mixed[:, :, heads + groups :], window)
    assert found is not None
    keys, values = cache.read(1, places)
    for row, slot in enumerate(slots):
        length = lengths[slot] + 1
        one = [part[row, :, :length].transpose(0, 1) for part in (keys, values)]
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
        # The new token is stored as the others are.
        assert torch.allclose(one[0][-1], mixed[row, 0, heads : heads + groups], atol=0 if bits == 16 else 0.05)
        expected = attended(mixed[row, 0, :heads], one[0], one[1], window)
        assert torch.allclose(found[row, 0].view(heads, width).double(), expected, atol=tolerance)


@pytest.mark.skipif(attention_library() is None, reason="no compiled kernels here")
def test_the_kernel_stores_the_codes_that_torch_does() -> None:
    torch.manual_seed(3)
    a = architecture(4, 2, 64, layers=3)
    mixed = torch.randn(1, 1, 8, 64).bfloat16()
    mixed[0, 0, 5] = 0.0  # a vector without a scale
    one, other = (KVCache(a, 1, 32, torch.bfloat16, bits=8) for _ in range(2))
    for cache in (one, other):
        cache.reserve(0, 1)
    assert one.decode(2, one.places([0], 1), mixed[:, :, :6], mixed[:, :, 6:], None) is not None
    other.append(2, other.places([0], 1), mixed[:, :, 4:6], mixed[:, :, 6:])
    assert torch.equal(one._bytes, other._bytes)


@pytest.mark.parametrize("bits", [16, 8])
def test_what_is_read_is_what_was_stored(bits: int) -> None:
    torch.manual_seed(0)
    a, lengths = architecture(), [40, 3, 17]
    cache = KVCache(a, 3, 64, torch.float32, bits)
    stored = filled(cache, a, lengths, layer=0)
    places = cache.places([2, 0, 1], 0)
    found = cache.read(0, places)
    assert places.longest == 40
    for row, slot in enumerate([2, 0, 1]):
        for one, other in zip(found, stored[slot], strict=True):
            expected = other[0].transpose(0, 1)
            # Rounded to 127 steps of the largest value of each vector.
            error = expected.abs().amax(-1, keepdim=True) / 127 * 0.501 if bits == 8 else torch.zeros(())
            assert ((one[row, :, : lengths[slot]] - expected).abs() <= error).all()


def test_eight_bits_take_about_half_the_memory() -> None:
    a = architecture(32, 8, 128, layers=32)
    half, full = (KVCache(a, 1, 64, torch.bfloat16, bits).block_bytes for bits in (8, 16))
    assert full == 16 * 2 * 32 * 8 * 128 * 2
    assert half == 16 * 2 * 32 * 8 * (128 + 4)


def test_the_limit_holds_and_what_was_refused_changes_nothing() -> None:
    cache = KVCache(architecture(), 2, 64, torch.float32)
    cache.limit = 3
    cache.reserve(0, 20)
    with pytest.raises(CacheFullError, match="2 blocks of keys and values are wanted, 1 are left"):
        cache.reserve(1, 17)
    assert (cache.held, cache.tables[1]) == (2, [])
    cache.clear(0)
    cache.reserve(1, 17)
    assert cache.held == 2


def test_shared_blocks_stay_until_their_last_owner_leaves() -> None:
    torch.manual_seed(0)
    a = architecture()
    cache = KVCache(a, 3, 64, torch.float32)
    keys = filled(cache, a, [40], layer=0)[0][0]
    cache.adopt(1, cache.tables[0][:2])
    assert (cache.lengths[1], cache.held) == (32, 3)
    cache.clear(0)
    assert cache.held == 2
    found = cache.read(0, cache.places([1], 0))[0]
    assert torch.equal(found[0], keys[0, :32].transpose(0, 1))
    cache.clear(1)
    assert cache.held == 0


def test_memory_is_taken_as_it_is_written_and_goes_back() -> None:
    process = psutil.Process()
    a = architecture(32, 8, 128, layers=16)
    before = process.memory_info().rss
    cache = KVCache(a, 4, 4096, torch.bfloat16)
    cache.reserve(0, 2048)
    assert process.memory_info().rss - before < 32 << 20, "blocks that were not written to take no memory"
    part = torch.ones(1, 2048, 8, 128, dtype=torch.bfloat16)
    for layer in range(16):
        cache.append(layer, cache.places([0], 2048), part, part)
    size = 2048 // KV_BLOCK * cache.block_bytes
    assert size == 2048 * 2 * 16 * 8 * 128 * 2
    full = process.memory_info().rss
    assert full - before > 0.9 * size
    cache.clear(0)
    assert full - process.memory_info().rss > 0.9 * size

"""Blocks of keys and values: what is known is reused, idle ones make room, nothing is lost or held twice."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.engine.kv_pool import KVPool
from lumoe.moe.model.kv_cache import KVCache

ARCHITECTURE = Architecture(
    model_type="mixtral", num_hidden_layers=1, num_local_experts=2, num_experts_per_tok=1, hidden_size=32,
    intermediate_size=64, num_attention_heads=2, num_key_value_heads=1, vocab_size=10,
)  # fmt: skip
SLOTS, CAPACITY = 3, 96
FULL, SMALL = b"16", b"4"


def pool() -> KVPool:
    cache = KVCache(ARCHITECTURE, SLOTS, CAPACITY, torch.float32)
    return KVPool(cache, cache)


def ran(found: KVPool, slot: int, tokens: list[int], precisions: bytes = FULL) -> int:
    """Run a sequence from its beginning to its end; return how many tokens were known."""
    known = found.begin(slot, tokens, precisions)
    assert found.make_room(found.missing(slot, len(tokens)))
    found.cache.reserve(slot, len(tokens))
    found.cache.lengths[slot] = len(tokens)
    found.keep(slot, tokens, precisions)
    found.cache.clear(slot)
    return known


def test_a_second_sequence_begins_with_the_full_blocks_of_the_first() -> None:
    found = pool()
    first = list(range(40))
    assert ran(found, 0, first) == 0
    assert (found.idle_blocks, found.busy_blocks) == (2, 0)
    assert ran(found, 1, [*first[:32], 7, 7, 7]) == 32
    assert ran(found, 1, [*first[:31], 9, 7, 7]) == 16
    assert ran(found, 2, [1, *first]) == 0


def test_one_token_is_always_left_to_compute() -> None:
    found = pool()
    ran(found, 0, list(range(32)))
    assert found.begin(1, list(range(32)), FULL) == 16
    assert found.begin(2, list(range(33)), FULL) == 32


def test_other_precisions_are_another_beginning() -> None:
    found = pool()
    ran(found, 0, list(range(40)), FULL)
    assert ran(found, 0, list(range(40)), SMALL) == 0
    assert ran(found, 0, list(range(40)), SMALL) == 32


def test_the_least_recently_used_make_room_the_ends_of_sequences_first() -> None:
    found = pool()
    found.set_limit(6)
    old, new = list(range(48)), list(range(50, 98))
    ran(found, 0, old)
    ran(found, 0, new)
    assert found.cache.held == 6
    assert found.make_room(1)
    assert found.begin(0, [*old, 0], FULL) == 32
    found.cache.clear(0)
    assert found.begin(1, [*new, 0], FULL) == 48


def test_a_lower_limit_gives_back_idle_blocks_and_no_others() -> None:
    found = pool()
    ran(found, 0, list(range(48)))
    found.cache.reserve(1, 20)
    found.set_limit(3)
    assert (found.busy_blocks, found.idle_blocks) == (2, 1)
    found.set_limit(0)
    assert (found.busy_blocks, found.idle_blocks) == (2, 0)
    assert not found.make_room(1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "limit"]),
            st.integers(0, SLOTS - 1),
            st.lists(st.integers(0, 1), min_size=1, max_size=6),
            st.sampled_from([FULL, SMALL]),
        ),
        max_size=60,
    )
)
def test_blocks_are_what_they_are_named_whatever_happens(steps: list[tuple[str, int, list[int], bytes]]) -> None:
    """Each block is stamped with what it was made for; who begins with it finds just that."""
    found = pool()
    cache = found.cache
    stamps: dict[int, tuple[bytes, tuple[int, ...]]] = {}
    running: dict[int, tuple[list[int], bytes]] = {}
    for action, slot, pattern, precisions in steps:
        if action == "begin" and slot not in running:
            tokens = [*(value for value in pattern for _ in range(16)), 5][-CAPACITY:]
            known = found.begin(slot, tokens, precisions)
            for place, block in enumerate(cache.tables[slot]):
                assert stamps[block] == (precisions, tuple(tokens[: 16 * (place + 1)]))
            assert known == 16 * len(cache.tables[slot])
            if not found.make_room(found.missing(slot, len(tokens))):
                cache.clear(slot)
                continue
            cache.reserve(slot, len(tokens))
            cache.lengths[slot] = len(tokens)
            for place, block in enumerate(cache.tables[slot][: len(tokens) // 16]):
                stamps[block] = (precisions, tuple(tokens[: 16 * (place + 1)]))
            running[slot] = tokens, precisions
        elif action == "end" and slot in running:
            found.end(slot, *running.pop(slot))
        elif action == "limit":
            found.set_limit(3 * len(pattern))
        busy = {block for table in cache.tables for block in table}
        assert found.busy_blocks == len(busy)
        assert cache.held == found.busy_blocks + found.idle_blocks
        assert cache.held <= max(cache.limit, len(busy))
    for slot in list(running):
        cache.clear(slot)
    found.set_limit(0)
    assert cache.held == 0

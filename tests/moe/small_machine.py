"""A small shape and a machine with round numbers, for sums that can be done by hand."""

from __future__ import annotations

from lumoe.moe.planning.hardware import Hardware
from lumoe.moe.planning.shape import ModelShape

SMALL = ModelShape(
    num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2, hidden_size=8, intermediate_size=16,
    num_attention_heads=2, num_key_value_heads=1, vocab_size=32,
)  # fmt: skip
BYTES = {4: 10, 16: 40}


def times(tokens: list[int], seconds: list[float]) -> dict[str, object]:
    return {"tokens": tokens, "seconds": seconds, "source": "test", "confidence": "assumed"}


def times_of(seconds: float) -> dict[str, object]:
    return times([1], [seconds])


def machine(overlapped: bool = False, **changes: object) -> Hardware:
    def number(value: float) -> dict[str, object]:
        return {"value": value, "source": "test", "confidence": "assumed"}

    fields = {
        "name": "test",
        "device": "test",
        "fast_bytes": number(1000),
        "transfer": {"latency_s": number(1.0), "bytes_per_s": number(10.0), "overlapped": overlapped},
        "dense": times([1, 16], [1.0, 4.0]),
        "expert": {4: times([1, 16], [0.5, 2.0]), 16: times([1, 16], [1.0, 3.0])},
        "hidden": 8,
        "intermediate": 16,
    }
    return Hardware.model_validate(fields | changes)

"""What a decoder of fixed shapes, as there is one for a GPU, does not compute."""

from __future__ import annotations

from lumoe.moe.architectures.architecture import Activation, Architecture, Attention, Router

# Grouped-query attention, a softmax router and nothing beside the experts.
_PLAIN = {
    "attention": Attention(),
    "router": Router(),
    "activation": Activation(),
    "norm": "rms",
    "dense_layers": (),
    "shared_size": 0,
    "windowed_layers": None,
    "embedding_scale": 1.0,
    "residual_scale": 1.0,
    "logits_divisor": 1.0,
    "head_bias": False,
    "norm_offset": 0.0,
    "delta": None,
}


def beyond_plain(architecture: Architecture) -> list[str]:
    """Return the fields of an architecture that ask for more; none where a GPU can run it."""
    other = [name for name, value in _PLAIN.items() if getattr(architecture, name) != value]
    turned = architecture.rotary
    if turned.width is not None or turned.interleaved:
        other.append("rotary")
    return other

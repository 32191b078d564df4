"""What the configurations of most families share: sizes, positions, windows."""

from __future__ import annotations

import math
from typing import Any

from lumoe.errors import UserError
from lumoe.moe.architectures.architecture import Rotary, Router
from lumoe.moe.architectures.config import Config

_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor", "alpha"),
    "yarn": ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("factor", "attention_factor", "short_factor", "long_factor", "short_mscale", "long_mscale"),
}
_NEEDED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


def sizes(config: Config) -> dict[str, Any]:
    """Return the fields that are named alike everywhere."""
    config.expect("hidden_act", "silu", "swish")
    config.expect("pretraining_tp", 1)
    heads = config.need("num_attention_heads")
    return {
        "num_hidden_layers": config.need("num_hidden_layers"),
        "hidden_size": config.need("hidden_size"),
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "head_dim": config.find("head_dim"),
        "vocab_size": config.need("vocab_size"),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "max_position_embeddings": config.get("max_position_embeddings", 32768),
    }


def head_width(config: Config) -> int:
    """Return the values of a head."""
    width = config.find("head_dim")
    return int(width if width is not None else config.need("hidden_size") // config.need("num_attention_heads"))


def rotary(
    config: Config,
    base: float,
    partial: float | None = None,
    *,
    interleaved: bool = False,
    scaling: dict[str, Any] | None = None,
) -> Rotary:
    """Return what a configuration says of positions, in any of the spellings that there have been.

    Version 5 of transformers nests all of it below `rope_parameters`; version 4 has the base at the top level and the
    scaling below `rope_scaling`, whose kind is named `type` in older files.

    Args:
        base: where none is given.
        partial: share of a head's values that is turned where none is given; None: the key is not this family's.
        scaling: where none is given.

    Raises:
        UserError: a kind that is not known, or a number that it lacks or does not take.
    """
    nested, flat = config.inner("rope_parameters"), config.inner("rope_scaling")
    source = nested if config.find("rope_parameters") else flat
    if scaling is not None and config.find("rope_parameters", "rope_scaling") is None:
        source = Config(config.path, scaling, "rope_scaling.")
    kind: Any = source.get("rope_type", source.get("type", "default"))
    if kind not in _SCALINGS:
        raise UserError(f"{config.path}: rope type '{kind}' is not supported; known: {', '.join(_SCALINGS)}")
    settings = {key: value for key in _SCALINGS[kind] if (value := source.find(key)) is not None}
    for key in _NEEDED.get(kind, ()):
        source.need(key)
    original = source.find("original_max_position_embeddings")
    top = config.find("original_max_position_embeddings")
    context = config.get("max_position_embeddings", 32768)
    theta = nested.find("rope_theta")
    share = nested.find("partial_rotary_factor")
    if partial is not None:
        share = share if share is not None else config.get("partial_rotary_factor", partial)
    # Both may be there: version 5 reads what version 4 wrote, and keeps it.
    # A text has one position, not three, whatever share of a head each of the three would turn.
    source.ignore("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
    source.check_nothing_left()
    if kind == "longrope" and "factor" not in settings and (top or original):
        settings["factor"] = context / (top or original)
    width = None if share in (None, 1, 1.0) else int(head_width(config) * share)
    return Rotary(
        base=config.get("rope_theta", base) if theta is None else theta,
        width=width,
        # GGUF files keep pairs as neighbours where a family's own files do not.
        interleaved=config.get("rope_interleaved", interleaved),
        kind=kind,
        settings=settings,
        original_context=original or top or context,
    )


def magnitude(factor: float, scale: float = 1.0) -> float:
    """Return YaRN's factor of the attention logits' square root, for a context stretched by `factor`."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def grouped_experts(config: Config) -> dict[str, Any]:
    """Return the experts of DeepSeek's third version, and of those that took them over.

    The first layers are dense; a network of the width of several experts stands beside them; scores are sigmoids, and a
    correction has a say in the choice. A group is as good as its two best experts.
    """
    width, dense = config.need("moe_intermediate_size"), config.get("first_k_dense_replace", 0)
    router = Router(
        score="sigmoid",
        correction=True,
        normalize=config.get("norm_topk_prob", True),
        scale=config.get("routed_scaling_factor", 1.0),
        groups=config.get("n_group", 1),
        chosen_groups=config.get("topk_group", 1),
        group_score="two best",
        float32=True,
    )
    return {
        "num_local_experts": config.need("n_routed_experts"),
        "num_experts_per_tok": config.need("num_experts_per_tok"),
        "intermediate_size": width,
        "dense_layers": tuple(range(dense)),
        "dense_size": config.need("intermediate_size"),
        "shared_size": width * config.get("n_shared_experts", 0),
        "router": router,
    }


def windows(config: Config, default: int | None, kinds: list[str] | None = None) -> dict[str, Any]:
    """Return the sliding window and the layers that have it, where `layer_types` names one for each layer.

    Args:
        default: of the window.
        kinds: of the layers where `layer_types` is not there; None: no layer has a window.

    Raises:
        UserError: a layer of another kind.
    """
    layers = config.need("num_hidden_layers")
    named = config.get("layer_types", kinds or ["full_attention"] * layers)
    known = {"sliding_attention", "full_attention"}
    if not isinstance(named, list) or len(named) != layers or not known.issuperset(named):
        raise UserError(
            f"{config.path}: 'layer_types' must name one of {', '.join(sorted(known))} for each of {layers} layers"
        )
    window = config.find("sliding_window") or default
    windowed = tuple(index for index, kind in enumerate(named) if kind == "sliding_attention")
    if windowed and window is None:
        raise UserError(f"{config.path}: 'sliding_window' is missing, but 'layer_types' has layers of that kind")
    return {"sliding_window": window if windowed else None, "windowed_layers": windowed}


def sparse_layers(config: Config) -> dict[str, Any]:
    """Return which layers are dense, as the Qwen families say it."""
    step, layers = config.get("decoder_sparse_step", 1), config.need("num_hidden_layers")
    named = set[int](config.get("mlp_only_layers", []))
    dense = tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)
    return {"dense_layers": dense, "dense_size": config.need("intermediate_size")} if dense else {}

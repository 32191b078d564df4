"""Which models can be opened, from which files: rows of two tables, made of the data that the readers use."""

from __future__ import annotations

from typing import NamedTuple

from lumoe.moe.architectures.about import About
from lumoe.moe.architectures.architecture import Architecture
from lumoe.moe.architectures.plain import beyond_plain
from lumoe.moe.architectures.read import known_families, read_shape
from lumoe.moe.checkpoint.gguf_metadata import ALSO, FAMILIES
from lumoe.moe.checkpoint.storage import FLOATS, METHODS, Held
from lumoe.moe.kernels.blocks import FORMATS

_BITS = {"F32": 32, "F16": 16, "BF16": 16}


class Family(NamedTuple):
    """Models that are opened alike.

    Attributes:
        models: names that people know.
        model_type: in `config.json`.
        router, attention: what they are made of, by the shape named.
        shape: in `data/shapes`.
        gguf: names in GGUF files; none: they are not read from such.
        calls: the mark that opens a call of a function, where the server reads it.
        gpu: whether they run on one, too.
        held_to: programs whose logits tests hold theirs to.
    """

    models: str
    model_type: list[str]
    router: str
    attention: str
    shape: str
    gguf: list[str]
    calls: str | None
    gpu: bool
    held_to: list[str]


class Storage(NamedTuple):
    """A way of storing weights.

    Attributes:
        files: safetensors or GGUF.
        format: as the files name it, or people do.
        bits: of a weight in the file, scales included.
        experts, rest: how memory holds the experts, and everything else.
    """

    files: str
    format: str
    bits: float
    experts: str
    rest: str


def families() -> list[Family]:
    """Return every family of models, those with several kinds of model once for each kind."""
    every = dict.fromkeys(known_families().values())
    return [_family(about, about.kinds or family.MODEL_TYPES) for family in every for about in family.ABOUT]


def _family(about: About, kinds: tuple[str, ...]) -> Family:
    shape = read_shape(about.shape)
    return Family(
        models=about.models,
        model_type=list(kinds),
        router=router_words(shape),
        attention=attention_words(shape),
        shape=about.shape,
        gguf=[theirs for theirs, (ours, _) in FAMILIES.items() if ours in kinds]
        + [theirs for ours, theirs in ALSO.items() if ours in kinds],
        calls=about.calls or None,
        gpu=not beyond_plain(shape),
        held_to=list(about.held_to),
    )


def router_words(a: Architecture) -> str:
    """Say how experts are chosen, and what stands beside them."""
    r = a.router
    words = [f"{r.score}, {a.num_experts_per_tok} of {a.num_local_experts}"]
    words += ["a correction has a say in the choice"] * r.correction
    words += [f"from {r.chosen_groups} of {r.groups} groups"] * (r.groups > 1)
    words += ["weights not normalised"] * (not r.normalize and r.score != "sparsemixer")
    words += [f"weights times {r.scale:g}"] * (r.scale != 1)
    words += ["a bias"] * r.bias
    words += [f"{'gated ' * a.shared_gate}network beside the experts"] * bool(a.shared_size)
    return "; ".join(words)


def attention_words(a: Architecture) -> str:
    """Say what attention is made of."""
    at, turned = a.attention, a.rotary
    kind = "grouped-query" if a.num_key_value_heads < a.num_attention_heads else "multi-head"
    words = [f"{len(a.delta_layers)} of {a.num_hidden_layers} layers Gated DeltaNet"] * bool(a.delta_layers)
    words += ["multi-head latent" if at.latent else kind]
    if at.norm:
        where = "each head" if at.norm == "head" else "all heads"
        words.append(f"queries and keys normalised over {where}{', after rotation' * at.norm_after}")
    words += [f"logits times {at.scale or 1:g}"] * (at.scale is not None and at.latent is None)
    words += ["biases"] * at.qkv_bias
    words += ["sinks"] * at.sinks
    words += ["gated output"] * at.output_gate
    if a.sliding_window is not None and a.sliding_window < a.max_position_embeddings:
        windowed = a.num_hidden_layers if a.windowed_layers is None else len(a.windowed_layers)
        words.append(f"a window of {a.sliding_window} tokens in {windowed} of {a.num_hidden_layers} layers")
    if turned.width is not None:
        words.append(f"{turned.width} of {a.head_width} values turned")
    words += ["neighbours turned together"] * turned.interleaved
    words += [turned.kind] * (turned.kind != "default")
    words += ["layer norms with biases"] * (a.norm == "layer")
    return "; ".join(words)


def formats() -> list[Storage]:
    """Return every way that weights may be stored; memory is the processor's, for activations in bfloat16."""
    found = [Storage("safetensors", kind, _BITS[kind], _held("16 bits"), _held("16 bits")) for kind in FLOATS]
    for method in METHODS.values():
        experts = _held(method.experts)
        experts += f"; {_held('16 bits')} where {method.unless}" if method.unless else ""
        layouts = f" ({', '.join(method.layouts)})" if method.layouts else ""
        bits = round(method.bits_per_weight, 2)
        found.append(Storage("safetensors", method.about + layouts, bits, experts, _held(method.rest)))
    found += [Storage("GGUF", kind, _BITS[kind], _held("16 bits"), _held("16 bits")) for kind in FLOATS]
    codes = _held("codes")
    return found + [
        Storage("GGUF", kind, round(form.bits_per_weight, 2), codes, codes) for kind, form in FORMATS.items()
    ]


def _held(how: Held) -> str:
    return "as its codes" if how == "codes" else "at 16 bits"

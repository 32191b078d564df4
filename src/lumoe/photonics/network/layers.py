"""A network as a list of layers: their shapes and counts, and the file that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.errors import UserError, nearest
from lumoe.files import read_json, write_json

# Sides of a tensor, of any rank.
Shape = tuple[int, ...]
# What stands in a table of layers for the whole network.
ALL_LAYERS = "all"
# Layers with multiplications; the others cost a photonic core nothing.
MULTIPLYING = ("conv", "linear", "transposed", "product")
# What an estimate may cover.
SCOPES = ("whole", "convolutions")
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Input:
    """One input of a network.

    Attributes:
        shape: of the tensor, its batch included.
        name: the parameter of `forward` that takes it; empty for the next one by position.
        dtype: a name of `DTYPES`.
    """

    shape: Shape
    name: str = ""
    dtype: str = "float32"

    def __str__(self) -> str:
        kind = "" if self.dtype == "float32" else f" of {self.dtype}"
        return f"{self.name}: {words(self.shape)}{kind}" if self.name else f"{words(self.shape[1:])}{kind}"


@dataclass(frozen=True)
class Layer:
    """One layer; sides are (height, width) in pixels. Every layer with multiplications is a 2-D convolution:

    * `conv`: of one dimension, it has height 1. Of three, an image is one slice of the output: the taps in depth are
      more input channels, so that a slice of the input counts once for each slice of the output that it goes into.
    * `linear`: 1 x 1, its positions are the rows of one column.
    * `transposed`: 1 x 1 over the pixels of its input, with a kernel for each output channel and tap. What the
      taps of neighbours give to one output is added behind the converters; no zero is multiplied.
    * `product`: of two tensors that are both computed from the input, as in attention: 1 x 1, one group for each
      matrix of a batch. The second factor is held as weights, which are written again for each input.

    Attributes:
        images: convolved with the same weights for each input of the network.
        rewritten: the weights are computed from the input, and are not the network's.
    """

    name: str
    kind: str
    in_channels: int = 0
    out_channels: int = 0
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    in_side: tuple[int, int] = (1, 1)
    out_side: tuple[int, int] = (1, 1)
    images: int = 1
    rewritten: bool = False

    @property
    def locations(self) -> int:
        """Kernel locations: positions of the output, of all images."""
        return self.images * self.out_side[0] * self.out_side[1]

    @property
    def kernel_inputs(self) -> int:
        """Inputs of one kernel: m² · n_c of its group."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def held(self) -> int:
        """Number of factors that are held while inputs stream past them: weights, or what takes their place."""
        return self.out_channels * self.kernel_inputs if self.macs else 0

    @property
    def weights(self) -> int:
        """Number of the network's weights, without bias."""
        return 0 if self.rewritten else self.held

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input of the network."""
        return self.locations * self.out_channels * self.kernel_inputs if self.kind in MULTIPLYING else 0


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run, and what was left out."""

    name: str
    inputs: tuple[Input, ...]
    layers: tuple[Layer, ...]
    ignored: tuple[str, ...] = ()
    other_macs: int = 0

    def convolutions(self) -> tuple[Layer, ...]:
        """The convolution layers.

        Raises:
            UserError: there are none.
        """
        found = tuple(layer for layer in self.layers if layer.kind == "conv")
        if not found:
            raise UserError(f"{self.name}: it has no convolution layer, which the accelerators need")
        return found

    def scope(self, name: str) -> tuple[Layer, ...]:
        """The layers of a scope: `convolutions`, as the papers count, or of the `whole` network all that multiply.

        Raises:
            UserError: there are none, or no such scope.
        """
        if name not in SCOPES:
            raise UserError(f"unknown scope '{name}'{nearest(name, SCOPES)}")
        if name == "convolutions":
            return self.convolutions()
        found = tuple(layer for layer in self.layers if layer.macs)
        if not found:
            raise UserError(f"{self.name}: it has no layer with multiplications, which the accelerators need")
        return found

    def coverage(self, layers: Sequence[Layer]) -> str:
        """Return a sentence: these layers' shares of multiply-accumulates and of weights, and what is left out."""
        macs = sum(layer.macs for layer in self.layers) + self.other_macs
        weights = sum(layer.weights for layer in self.layers)
        parts = (("multiply-accumulates", "macs", macs), ("weights", "weights", weights))
        shares = [
            f"{_percent(sum(getattr(layer, count) for layer in layers), whole)} of the {what}"
            for what, count, whole in parts
        ]
        chosen = {layer.name for layer in layers}
        left = [layer for layer in self.layers if layer.macs and layer.name not in chosen]
        kinds = [words for kind, words in _KINDS.items() if any(layer.kind == kind for layer in left)]
        kinds += ["multiplications outside layers"] if self.other_macs else []
        said = f": {' and '.join(kinds)} are not estimated" if kinds else ""
        return f"{self.name}: the estimate covers {' and '.join(shares)}{said}"

    def notes(self) -> list[str]:
        """Sentences on what tracing left out, empty if nothing."""
        said = [f"{self.name}: ignored {len(self.ignored)} layers of unknown type: {', '.join(self.ignored)}"]
        more = [f"{self.name}: {self.other_macs:,} multiply-accumulates in operations of unknown type are ignored"]
        return (said if self.ignored else []) + (more if self.other_macs else [])

    def table(self) -> pd.DataFrame:
        """One row a layer, with its counts."""
        counts = ("locations", "kernel_inputs", "weights", "macs")
        rows = [asdict(x) | {name: getattr(x, name) for name in counts} for x in self.layers]
        return pd.DataFrame(rows, columns=[*(field.name for field in fields(Layer)), *counts])


# What the layers of a kind are called in a sentence.
_KINDS: Mapping[str, str] = {
    "conv": "convolutions",
    "linear": "linear layers",
    "transposed": "transposed convolutions",
    "product": "products of activations (attention)",
}


def _percent(part: int, whole: int) -> str:
    """Return a share as ``0.7 %``: ``100 %`` is all, and what is nearly all is not called so."""
    if part == whole:
        return "100 %"
    return f"{min(100 * part / whole, 99.9):.3g} %"


def words(shape: Shape) -> str:
    """Return a shape as ``3 x 224 x 224``."""
    return " x ".join(map(str, shape))


def as_inputs(inputs: Shape | Sequence[Input]) -> tuple[Input, ...]:
    """Return the inputs of a network: those given, or one image of a shape to which a batch of one is added."""
    sides = tuple(side for side in inputs if not isinstance(side, Input))
    return (Input((1, *sides)),) if sides else tuple(one for one in inputs if isinstance(one, Input))


def listed(inputs: Sequence[Input]) -> str:
    """Return inputs as a sentence names them."""
    return " and ".join(map(str, inputs))


def parse_inputs(texts: Sequence[str] | None) -> tuple[Input, ...] | None:
    """Return the inputs of ``3x224x224``, ``1000:int64`` or ``tokens:1x128:int64``; None for none.

    A shape without a name is that of one image (or sentence, …), to which a batch of one is added, and is given by
    position. With a name it is that of the whole tensor, and is given by that name.

    Raises:
        UserError: not of that form, or a name that comes twice.
    """
    inputs = tuple(_parse_input(text) for text in texts or ())
    names = [found.name for found in inputs if found.name]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--input: '{twice[0]}' is given twice")
    return inputs or None


def _parse_input(text: str) -> Input:
    parts = text.split(":")
    named = len(parts) == 3 or (len(parts) == 2 and parts[1] not in DTYPES and parts[0].isidentifier())
    name, shape = (parts[0], parts[1]) if named else ("", parts[0])
    dtype = parts[-1] if len(parts) - named == 2 else "float32"
    sides = shape.lower().split("x")
    if not all(side.isascii() and side.isdigit() and int(side) > 0 for side in sides) or len(parts) > 3:
        raise UserError(
            f"the input is '{text}', but must be SIDExSIDEx..., each at least 1, such as 3x224x224, or "
            "NAME:SHAPE:DTYPE, such as tokens:1x128:int64"
        )
    if named and not name.isidentifier():
        raise UserError(f"the input is '{text}', but '{name}' is not the name of a parameter")
    if dtype not in DTYPES:
        raise UserError(f"the input is '{text}', but there is no type '{dtype}'{nearest(dtype, DTYPES)}")
    found = tuple(map(int, sides))
    return Input(found if named else (1, *found), name, dtype)


def write_network(path: str | Path, network: Network) -> None:
    """Write a traced network as JSON."""
    write_json(path, asdict(network))


def read_network(path: str | Path) -> Network:
    """Read what `write_network` wrote.

    Raises:
        UserError: the file is absent or not a traced network.
    """
    record = read_json(path)
    try:
        values = {field.name: _tuple(record[field.name]) for field in fields(Network)}
        parts = {"layers": _records(Layer, record["layers"]), "inputs": _records(Input, record["inputs"])}
        return Network(**(values | parts))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a traced network ({error}); make it with `lumoe photonics trace`") from None


def _records(kind: type[Any], rows: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(kind(**{key: _tuple(value) for key, value in row.items()}) for row in rows)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

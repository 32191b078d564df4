"""A network as a list of layers: their shapes and counts, and the file that holds them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from lumoe.errors import UserError
from lumoe.files import read_json, write_json

Shape = tuple[int, int, int]
# What stands in a table of layers for the whole network.
ALL_LAYERS = "all"


@dataclass(frozen=True)
class Layer:
    """One layer; sides are (height, width) in pixels. A linear layer is a 1 x 1 convolution of its positions."""

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

    @property
    def locations(self) -> int:
        """Kernel locations: positions of the output."""
        return self.out_side[0] * self.out_side[1]

    @property
    def kernel_inputs(self) -> int:
        """Inputs of one kernel: m² · n_c of its group."""
        return self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    @property
    def weights(self) -> int:
        """Number of weights, without bias."""
        return self.out_channels * self.kernel_inputs if self.macs else 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.locations * self.out_channels * self.kernel_inputs if self.kind in ("conv", "linear") else 0


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they run, and what was left out."""

    name: str
    input_shape: Shape
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

    def notes(self) -> list[str]:
        """Sentences on what the estimate leaves out, empty if nothing."""
        said = [f"{self.name}: ignored {len(self.ignored)} layers of unknown type: {', '.join(self.ignored)}"]
        more = [
            f"{self.name}: {self.other_macs:,} multiply-accumulates outside convolution and linear layers are ignored"
        ]
        return (said if self.ignored else []) + (more if self.other_macs else [])

    def table(self) -> pd.DataFrame:
        """One row a layer, with its counts."""
        counts = ("locations", "kernel_inputs", "weights", "macs")
        return pd.DataFrame([asdict(x) | {name: getattr(x, name) for name in counts} for x in self.layers])


def words(shape: Shape) -> str:
    """Return a shape as ``3 x 224 x 224``."""
    return " x ".join(map(str, shape))


def parse_shape(text: str) -> Shape:
    """Return the (channels, height, width) of ``3x224x224``.

    Raises:
        UserError: not three whole numbers of at least 1.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"the input is '{text}', but must be CHANNELSxHEIGHTxWIDTH, each at least 1, such as 3x224x224")
    return int(parts[0]), int(parts[1]), int(parts[2])


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
        layers = tuple(Layer(**{key: _tuple(value) for key, value in layer.items()}) for layer in record["layers"])
        values = {field.name: _tuple(record[field.name]) for field in fields(Network) if field.name != "layers"}
        return Network(**values, layers=layers)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a traced network ({error}); make it with `lumoe photonics trace`") from None


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value

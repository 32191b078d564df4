"""What the parts of a model take in its files: parameters and bytes, and what of them one token uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

EMBEDDINGS, EXPERTS, BIASES = "embeddings", "routed experts", "experts' biases"
# In the order in which they are shown.
PARTS = (EMBEDDINGS, "attention", "norms", "routers", "shared experts", "dense layers", BIASES, EXPERTS)


@dataclass(frozen=True)
class PartSize:
    """One kind of weights, all layers together.

    Attributes:
        nbytes: in the format of the files, scales included.
        formats: what the weights are stored as, such as bf16 or Q4_K.
        count: networks that it is made of: experts of the whole model, 1 for everything else.
        each: bytes of the smallest and of the largest of them.
    """

    name: str
    parameters: int
    nbytes: int
    formats: tuple[str, ...]
    count: int = 1
    each: tuple[int, int] = (0, 0)

    @property
    def bits(self) -> float:
        """Bits per weight."""
        return 8 * self.nbytes / self.parameters


@dataclass(frozen=True)
class Parts:
    """All parts of a model.

    Attributes:
        sizes: those that there are, in the order of PARTS.
        token_parameters: weights that the computation of one token uses.
        source: what the sizes come from, in words.
        unused: bytes of tensors in the files that are not part of this model's computation.
    """

    sizes: Sequence[PartSize]
    token_parameters: int
    source: str
    unused: int = 0

    @property
    def parameters(self) -> int:
        """Weights of the whole model."""
        return sum(size.parameters for size in self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole model in its files, without those that are not used."""
        return sum(size.nbytes for size in self.sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {
            "sizes_from": self.source,
            "parameters": self.parameters,
            "parameters_per_token": self.token_parameters,
            "bytes_in_files": self.nbytes,
            "bytes_unused": self.unused,
            "parts": [{**asdict(size), "formats": list(size.formats), "each": list(size.each)} for size in self.sizes],
        }

    def lines(self) -> list[str]:
        """Return the table in words, one line a part."""
        rows = [
            (s.name, number(s.parameters), amount(s.nbytes), f"{s.bits:.4g}", ", ".join(s.formats) + _each(s))
            for s in self.sizes
        ]
        rows.append(("in all", number(self.parameters), amount(self.nbytes), "", ""))
        rows.append(("for a token", number(self.token_parameters), "", "", ""))
        if self.unused:
            rows.append(("not used", "", amount(self.unused), "", "further tensors of the files"))
        table = [("part", "parameters", "in files", "bits", "format"), *rows]
        return [f"  {n:<15} {p:>10} {b:>10} {w:>6}  {f}".rstrip() for n, p, b, w, f in table]


def amount(count: int) -> str:
    """Return bytes in words."""
    for unit, size in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def number(count: int) -> str:
    """Return how many, in words."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)


def _each(size: PartSize) -> str:
    if size.count == 1:
        return ""
    least, most = (amount(value) for value in size.each)
    return f"; {size.count} of {least}" + ("" if least == most else f" to {most}")

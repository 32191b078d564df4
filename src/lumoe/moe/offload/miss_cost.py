"""Whether a missed expert is brought to the device or computes where it rests (arXiv 2402.07033), by measured times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lumoe.moe.planning.cost import seconds_at, transfer_seconds
from lumoe.moe.planning.hardware import Hardware


@dataclass(frozen=True)
class MissCosts:
    """Seconds of a miss on either side.

    Attributes:
        hardware: `transfer` for the link, `host` for computing in host memory; precisions not in `host` are brought.
        sizes: bits per weight -> bytes of one expert.
    """

    hardware: Hardware
    sizes: dict[int, int]

    def link(self, bits: int) -> float:
        """Time to bring one expert."""
        return float(transfer_seconds(self.hardware, self.sizes[bits]))

    def host(self, bits: int, tokens: int) -> float:
        """Time of one expert over `tokens` in host memory, their way there and back included."""
        return float(seconds_at(self.hardware.host[bits], tokens))


def split_misses(bits: Sequence[int], tokens: Sequence[int], costs: MissCosts) -> list[bool]:
    """Return for each missed expert of a layer whether it should compute where it rests.

    The link and the host work side by side; each expert in turn goes where it would be done first.
    """
    link = host = 0.0
    stay = []
    for value, count in zip(bits, tokens, strict=True):
        brought = link + costs.link(value)
        here = host + costs.host(value, count) if value in costs.hardware.host else float("inf")
        stay.append(here < brought)
        link, host = (link, here) if here < brought else (brought, host)
    return stay

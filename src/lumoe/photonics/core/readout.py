"""What detectors and converters make of the samples of weight banks: noise, the ADC's rounding, the digital sum.

Noise is a function of a seed and of where a sample is (layer, call, panel, bank, place in it), so it does not depend on
threads, chunks or the device. On the CPU `readout.cpp` does it all in one pass; the torch operators here give the same
bits, on any device and without a compiler.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lumoe import compiled
from lumoe.photonics.physics.limits import require_count
from lumoe.resources import package_path

# IEEE operations only, none fused: the same bits on every processor, and those of torch.
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off", "-fopenmp", "-fPIC")
VECTORS = {"AVX2": ("-mavx2",), "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl")}

# Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF
# Counters worked on side by side: word j of lane i is for sample LANES·j + i of its block.
_LANES = 64


@dataclass(frozen=True)
class Draw:
    """Which noise: that of a `call` of a layer (`stream`) under a `seed`; each from 0 to 2³² − 1."""

    seed: int
    stream: int = 0
    call: int = 0

    def __post_init__(self) -> None:
        for name in ("seed", "stream", "call"):
            require_count(name, getattr(self, name), 0, _WORD)


@dataclass(frozen=True)
class Readout:
    """How samples are read.

    Attributes:
        quiet: [G, B, L], the part of the noise's variance that does not depend on the sample; None for no noise.
        intensity: the part that grows with the squared sample.
        steps: [G], the ADC's steps in a sample of 1.
        limit: the ADC's highest code; None reads samples exactly.
    """

    quiet: Tensor | None
    intensity: float
    steps: Tensor
    limit: float | None


def add_readings(total: Tensor, samples: Tensor, readout: Readout, draw: Draw, *, panel: int, bank: int) -> None:
    """Add to `total` what the detectors and converters make of `samples`: codes of the ADC, or samples without one.

    Args:
        total: [G, K, L], changed in place.
        samples: [G, B, K, L], contiguous.
        panel, bank: where the noise of the first bank is; those of the other banks follow it.
    """
    library = _library() if samples.device.type == "cpu" and samples.dtype == torch.float32 else None
    if library is None:
        _add_readings(total, samples, readout, draw, panel, bank)
        return
    quiet, steps = readout.quiet, readout.steps.contiguous()
    if quiet is not None:
        # One distance from bank to bank, also from one group's last to the next group's first.
        even = quiet.shape[0] == 1 or quiet.stride(0) == quiet.stride(1) * quiet.shape[1]
        quiet = quiet if even and quiet.stride(2) == 1 else quiet.contiguous()
    assert total.stride(2) == 1
    # fmt: off
    library.lumoe_read_out(
        samples.data_ptr(), *samples.shape, total.data_ptr(), total.stride(0), total.stride(1),
        None if quiet is None else quiet.data_ptr(), 0 if quiet is None else quiet.stride(1), readout.intensity,
        steps.data_ptr(), readout.limit or 0.0, draw.seed | draw.stream << 32, draw.call, panel, bank,
    )
    # fmt: on


def normals(draw: Draw, *, panel: int, bank: int, banks: int, samples: int, device: torch.device) -> Tensor:
    """Return the normal deviates [banks, samples] (float32) of `samples` samples of each of `banks` banks."""
    blocks = -(-samples // (4 * _LANES))
    lanes = torch.arange(blocks * _LANES, device=device)
    number = torch.arange(bank, bank + banks, device=device)[:, None]
    words = philox((lanes, number, panel, draw.call), (draw.seed, draw.stream))
    deviates = [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
    by_block = [part.reshape(banks, blocks, 1, _LANES) for part in deviates]
    return torch.cat(by_block, dim=2).reshape(banks, -1)[:, :samples]


def philox(counter: tuple[Tensor | int, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four words of Philox4x32-10 for a counter of four words (which broadcast) and a key of two."""
    c0, c1, c2, c3 = (torch.as_tensor(word) for word in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The products need 64 bits, unsigned; int64 wraps to the same bits.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (second >> 32 & _WORD) ^ c1 ^ k0, (first >> 32 & _WORD) ^ c3 ^ k1
        c1, c3 = second & _WORD, first & _WORD
        k0, k1 = k0 + _WEYL[0] & _WORD, k1 + _WEYL[1] & _WORD
    return c0, c1, c2, c3


def _box_muller(radius: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Two normal deviates from two words; operation by operation that of `readout.cpp`."""
    uniform = (radius >> 1).float() * 2.0**-31 + 2.0**-32
    length = _root(_logarithm(uniform) * -2.0)
    x = ((angle & 0x3FFFFFFF).float() * 2.0**-30 - 0.5) * (torch.pi / 2)
    z = x * x
    sine = x + x * (z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880)))))
    cosine = 1 + z * (-0.5 + z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320))))
    along, across = length * cosine, length * sine
    odd = (angle >> 30 & 1).bool()
    sign = 1 - (angle >> 31 << 1)
    return torch.where(odd, -across, along) * sign, torch.where(odd, along, across) * sign


def _root(value: Tensor) -> Tensor:
    """The correctly rounded root; torch's own of float32 is off by a last bit now and then."""
    return value.double().sqrt().to(value.dtype)


def _logarithm(value: Tensor) -> Tensor:
    shifted = value.view(torch.int32) - 0x3F3504F3  # the bits of √½
    exponent = (shifted >> 23).float()
    mantissa = ((shifted & 0x007FFFFF) + 0x3F3504F3).view(torch.float32)
    s = (mantissa - 1) / (mantissa + 1)
    z = s * s
    series = z * (1 / 3 + z * (1 / 5 + z * (1 / 7 + z * (1 / 9))))
    return exponent * 0.693147181 + 2 * (s + s * series)


def _add_readings(total: Tensor, samples: Tensor, readout: Readout, draw: Draw, panel: int, bank: int) -> None:
    groups, banks, rows, columns = samples.shape
    if readout.quiet is not None:
        deviates = normals(
            draw, panel=panel, bank=bank, banks=groups * banks, samples=rows * columns, device=samples.device
        )
        spread = _root(readout.quiet[:, :, None] + readout.intensity * (samples * samples))
        samples = samples + spread * deviates.reshape(samples.shape).to(samples.dtype)
    if readout.limit is not None:
        samples = (samples * readout.steps[:, None, None, None]).round().clamp(-readout.limit, readout.limit)
    total += samples.sum(1)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    vectors = VECTORS.get(torch.backends.cpu.get_cpu_capability(), ())
    found = compiled.load([package_path("photonics", "core", "readout.cpp")], (*FLAGS, *vectors))
    if found is not None:
        size, word, real, pointer = ctypes.c_int64, ctypes.c_uint32, ctypes.c_float, ctypes.c_void_p
        place = [ctypes.c_uint64, word, word, word]
        found.lumoe_normals.argtypes = [pointer, size, *place]
        found.lumoe_normals.restype = None
        read_out = found.lumoe_read_out
        read_out.argtypes = [pointer, *[size] * 4, pointer, size, size, pointer, size, real, pointer, real, *place]
        read_out.restype = None
    return found

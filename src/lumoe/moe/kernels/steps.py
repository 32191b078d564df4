"""What `csrc/attention.cpp` and `csrc/router.cpp` are told of a layer and of a step of decoding, field by field.

Addresses are those of tensors that somebody keeps as long as the record; 0 stands for none.
"""

from __future__ import annotations

import ctypes

_NUMBER, _REAL, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p


def _fields(kind: type, names: str) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class AttentionLayer(ctypes.Structure):
    """A layer's norm, attention and projections."""

    _fields_ = (
        *_fields(_POINTER, "norm projection bias norms output output_bias"),
        *_fields(_NUMBER, "norm_wide hidden heads groups width window index apart"),
        *_fields(_REAL, "epsilon query_scale residual_scale"),
    )


class Step(ctypes.Structure):
    """Keys and values, and where the new token of each sequence stands among them.

    Attributes:
        kept: whose memory some of the addresses are.
    """

    kept: object

    _fields_ = (
        *_fields(_POINTER, "memory tables slots lengths cosine sine"),
        *_fields(_NUMBER, "block_bytes layer_bytes columns codes count"),
    )


class Router(ctypes.Structure):
    """A layer's norm before its experts, and its router."""

    _fields_ = (
        *_fields(_POINTER, "norm gate bias correction"),
        *_fields(_NUMBER, "norm_wide gate_wide hidden experts chosen sigmoid normalize"),
        *_fields(_REAL, "epsilon least_sum scale"),
    )

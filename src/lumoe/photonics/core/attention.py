"""Attention on the analog core: the rings of projections hold weights, those of the two products inside follow data."""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lumoe.photonics.core.analog import Analog, InsteadOfTorch


class AnalogScores(Analog):
    """Stands in for ``scaled_dot_product_attention``: queries times keys, and attention times values.

    The softmax between them is digital.
    """

    products: ClassVar[dict[Any, str]] = {nn.functional.scaled_dot_product_attention: "_scaled_dot_product"}

    def _scaled_dot_product(
        self,
        function: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *more: Any,
        **named: Any,
    ) -> Tensor:
        """Return softmax(query [..., T, C] · key [..., S, C]ᵀ · scale + mask) · value [..., S, D]."""
        named |= dict(zip(("attn_mask", "dropout_p", "is_causal"), more, strict=False))
        attn_mask, scale = named.get("attn_mask"), named.get("scale")
        if named.get("enable_gqa"):
            repeats = query.shape[-3] // key.shape[-3]
            key, value = (x.repeat_interleave(repeats, -3) for x in (key, value))
        scores = self._between(None, query, key.mT) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
        if named.get("is_causal"):
            ahead = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(ahead, -math.inf)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
        attention = nn.functional.dropout(scores.softmax(-1), named.get("dropout_p", 0.0))
        return self._between(None, attention, value)


class PhotonicMultiheadAttention(AnalogScores, nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention` on microring weight banks; takes the same arguments and the `core`."""

    products: ClassVar[dict[Any, str]] = {
        **AnalogScores.products,
        nn.functional.multi_head_attention_forward: "_multi_head",
        nn.functional.linear: "_linear",
        torch.bmm: "_between",
        torch.baddbmm: "_added",
    }

    def _multi_head(self, function: Any, *args: Any, **named: Any) -> Any:
        with InsteadOfTorch(self):
            return _multi_head_attention(*args, **named)

    def _added(self, function: Any, added: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return added + self._between(function, left, right)


# torch's own, which asks first whether somebody stands in for it, and would come back to `_multi_head`.
_torchs = nn.functional.multi_head_attention_forward
_multi_head_attention = FunctionType(
    _torchs.__code__, {**vars(nn.functional), "has_torch_function": lambda _: False}, argdefs=_torchs.__defaults__
)

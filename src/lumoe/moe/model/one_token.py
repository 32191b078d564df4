"""What lies around a layer's experts in two calls of kernels, for one new token of each sequence or a few.

At a small model's widths an operator of torch's takes longer to call than to compute. What these two compute is the
same as what `Norm`, `Attention` and `Router` do one operator after another; they are there where all parts have what
the kernels take, which is bfloat16 weights and nothing unusual.
"""

from __future__ import annotations

import torch

from lumoe.moe.kernels import dense, steps
from lumoe.moe.kernels.library import attention_library, router_library
from lumoe.moe.model.attention import Attention, Mixer
from lumoe.moe.model.linear import BandwidthLinear, BiasedLinear, Linear
from lumoe.moe.model.norm import Norm
from lumoe.moe.model.router import Router


class TokenAttention:
    """A layer's norm, attention and residual sum for one new token of each sequence."""

    __slots__ = ("_kept", "_record", "_run", "_weights")

    def __init__(
        self, norm: Norm, attention: Attention, projection: _Product, output: _Product, residual_scale: float
    ) -> None:
        """Prepare; see `token_attention` for what fits."""
        library, norms = attention_library(), attention.norms
        assert library is not None
        self._run = library.lumoe_attention_layer
        self._weights = projection.weight.numel() + output.weight.numel()
        # Their memory lives as long as the record of their addresses.
        self._kept = norm.weight, norms, projection, output
        self._record = steps.AttentionLayer(
            norm.weight.data_ptr(), projection.weight.data_ptr(), _address(projection.bias), _address(norms),
            output.weight.data_ptr(), _address(output.bias), norm.weight.dtype == torch.float32, norm.weight.numel(),
            attention.heads, attention.key_value_heads, attention.width, attention.window or 0, attention.index,
            attention.settings.norm == "head", norm.epsilon, attention.scale, residual_scale,
        )  # fmt: skip

    def few(self, tokens: int) -> bool:
        """Whether so many tokens are computed here."""
        return dense.few(tokens, self._weights)

    def __call__(self, hidden: torch.Tensor, step: steps.Step) -> None:
        """Add what attention finds to `hidden` `[sequences, 1, hidden]`; the cache gets new keys and values."""
        self._run(self._record, step, hidden.data_ptr())


class TokenRouter:
    """The norm before a layer's experts, and its router."""

    __slots__ = ("_chosen", "_kept", "_record", "_run", "_weights")

    def __init__(self, norm: Norm, router: Router) -> None:
        """Prepare; see `token_router` for what fits."""
        library, s = router_library(), router.settings
        assert library is not None
        self._run, self._chosen, self._weights = library.lumoe_route, router.top_k, router.gate.numel()
        self._kept = norm.weight, router
        self._record = steps.Router(
            norm.weight.data_ptr(), router.gate.data_ptr(), _address(router.bias), _address(router.correction),
            norm.weight.dtype == torch.float32, router.gate.dtype == torch.float32, norm.weight.numel(),
            len(router.gate), router.top_k, s.score == "sigmoid", s.normalize, norm.epsilon, s.least_sum, s.scale,
        )  # fmt: skip

    def few(self, tokens: int) -> bool:
        """Whether so many tokens are computed here."""
        return dense.few(tokens, self._weights)

    def __call__(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return `[tokens, hidden]` normalised, and weights and indices as `Router` does."""
        tokens, hidden = hidden.shape[0], hidden.contiguous()
        normed, weights = torch.empty_like(hidden), hidden.new_empty((tokens, self._chosen))
        chosen = torch.empty((tokens, self._chosen), dtype=torch.int64)
        self._run(self._record, tokens, hidden.data_ptr(), normed.data_ptr(), weights.data_ptr(), chosen.data_ptr())
        return normed, weights, chosen


def token_attention(norm: Norm, mixer: Mixer, residual_scale: float) -> TokenAttention | None:
    """Return a layer's attention in one call; None where some part of it is not what the kernel computes."""
    if not isinstance(mixer, Attention) or not _fits(norm):
        return None
    at = mixer.settings
    unusual = at.norm_after or at.clip is not None or at.output_gate or mixer.sinks is not None
    projection, output = _product(mixer.projection), _product(mixer.output)
    if unusual or projection is None or output is None or mixer.width % 16 or attention_library() is None:
        return None
    if mixer.norms is not None and not (mixer.norms.dtype == torch.bfloat16 and mixer.norms.is_contiguous()):
        return None
    return TokenAttention(norm, mixer, projection, output, residual_scale)


def token_router(norm: Norm, router: Router) -> TokenRouter | None:
    """Return a layer's norm and router in one call; None where some part of them is not what the kernel computes."""
    s, hidden = router.settings, norm.weight.numel()
    simple = s.score in ("softmax", "sigmoid") and s.groups == 1 and hidden % dense.BLOCK == 0 and _fits(norm)
    if not simple or router_library() is None:
        return None
    kinds = torch.float32 if s.float32 else torch.bfloat16, torch.float32
    for tensor, kind in ((router.gate, kinds[0]), (router.bias, kinds[0]), (router.correction, kinds[1])):
        if tensor is not None and not (tensor.dtype == kind and tensor.is_contiguous()):
            return None
    return TokenRouter(norm, router)


class _Product:
    """Weights that a kernel multiplies with, and what is added then."""

    __slots__ = ("bias", "weight")

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight, self.bias = weight, bias


def _product(linear: Linear) -> _Product | None:
    product, bias = (linear.product, linear.bias) if isinstance(linear, BiasedLinear) else (linear, None)
    if not isinstance(product, BandwidthLinear) or not product.weight.is_contiguous():
        return None
    if bias is not None and not (bias.dtype == torch.bfloat16 and bias.is_contiguous()):
        return None
    return _Product(product.weight, bias)


def _fits(norm: Norm) -> bool:
    kind = norm.weight.dtype in (torch.bfloat16, torch.float32)
    return kind and norm.bias is None and norm.weight.is_cpu and norm.weight.is_contiguous()


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()

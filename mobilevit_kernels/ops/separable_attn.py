"""``mobilevit::separable_attn``: the whole separable self-attention layer of MobileViTv2 as one op."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels import reference
from mobilevit_kernels.backends import select_backend
from mobilevit_kernels.ops.checks import check_floating, check_separable_attn, check_separable_attn_backward
from mobilevit_kernels.ops.registration import (
    accumulate_dtype,
    as_pair,
    call_reference,
    channels_last_empty,
    forbid_double_backward,
    register_autocast,
)
from mobilevit_kernels.ops.triton import register_triton

_op = torch.ops.mobilevit.separable_attn.default
_backward_op = torch.ops.mobilevit.separable_attn_backward.default


def separable_attn(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: int | Sequence[int] = (2, 2),
) -> Tensor:
    """Separable self-attention (arXiv 2206.02680, equation 3), projections included.

    For the N tokens of each pixel position: ``scores = softmax(query)``, ``context = sum(scores * key)``,
    ``out = out_proj(relu(value) * context)``. The scores sum to one, so the kernels pool the tokens first and project
    the pooled vector: the key of a token is never computed. Sums are in float32 (float64 for float64).

    Args:
        x: ``[B, C, H, W]``, any strides; channels_last is read without a copy. float32, float64, bfloat16, float16.
        qkv_weight: ``[1 + 2C, C]`` or ``[1 + 2C, C, 1, 1]``, rows query (1) | key (C) | value (C); dtype of ``x``.
        qkv_bias: ``[1 + 2C]`` or None. The query's bias changes nothing (softmax ignores it) and has a zero gradient.
        out_weight: ``[C, C]`` or ``[C, C, 1, 1]``.
        out_bias: ``[C]`` or None.
        patch_size: (patch_h, patch_w), or one int for both. The unfolded layout ``[B, C, P, N]`` is
            ``patch_size=(P, 1)``.

    Returns:
        ``[B, C, H, W]``, dtype of ``x`` (the autocast dtype under autocast), channels_last. Differentiable once.

    Raises:
        ValueError: wrong dimensions or weight shapes, H or W not divisible by the patch, mixed devices.
        TypeError: not floating-point, or weights of another dtype than ``x``.
        RuntimeError: the chosen backend cannot run here; the message says why.
    """
    patch = as_pair(patch_size)
    check_floating("x", x)
    args = (x, qkv_weight, qkv_bias, out_weight, out_bias, patch)
    if select_backend("separable_attn", x) == "reference":
        return call_reference(reference.separable_attn, check_separable_attn, *args)
    return _op(*args)


@torch.library.register_fake("mobilevit::separable_attn")
def _fake(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
) -> Tensor:
    check_separable_attn(x, qkv_weight, qkv_bias, out_weight, out_bias, as_pair(patch_size))
    return channels_last_empty(x, x.shape[1])


@torch.library.register_fake("mobilevit::separable_attn_forward")
def _forward_fake(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out = _fake(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size)
    batch, channels, height, width = x.shape
    ph, pw = patch_size
    dtype = accumulate_dtype(x.dtype)
    scores = x.new_empty((batch, ph * pw, (height // ph) * (width // pw)), dtype=dtype)
    pooled, context = (x.new_empty((batch, ph * pw, channels), dtype=dtype) for _ in range(2))
    return out, scores, pooled, context


@torch.library.register_fake("mobilevit::separable_attn_backward")
def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    scores: Tensor,
    pooled: Tensor,
    context: Tensor,
    patch_size: Sequence[int],
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    grad_x = channels_last_empty(x, channels) if output_mask[0] else x.new_empty(0)
    shapes = (tuple(qkv_weight.shape), (1 + 2 * channels,), tuple(out_weight.shape), (channels,))
    grads = [x.new_empty(shape if output_mask[1] else 0) for shape in shapes]
    return grad_x, grads[0], grads[1], grads[2], grads[3]


forbid_double_backward(_backward_op)
register_autocast(_op)
register_triton("separable_attn", "separable_attn", check_separable_attn)
register_triton("separable_attn_forward", "separable_attn", check_separable_attn)
register_triton("separable_attn_backward", "separable_attn", check_separable_attn_backward)

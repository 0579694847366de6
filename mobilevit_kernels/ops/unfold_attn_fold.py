"""``mobilevit::unfold_attn_fold``: unfold -> multi-head attention -> fold, without the unfold and the fold."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels import reference
from mobilevit_kernels.backends import select_backend
from mobilevit_kernels.ops.checks import (
    check_floating,
    check_unfold_attn_fold,
    check_unfold_attn_fold_backward,
)
from mobilevit_kernels.ops.registration import (
    accumulate_dtype,
    as_pair,
    call_reference,
    channels_last_empty,
    forbid_double_backward,
    register_autocast,
)
from mobilevit_kernels.ops.triton import register_triton

_op = torch.ops.mobilevit.unfold_attn_fold.default
_backward_op = torch.ops.mobilevit.unfold_attn_fold_backward.default


def unfold_attn_fold(
    qkv: Tensor, num_heads: int, patch_size: int | Sequence[int] = (2, 2), scale: float | None = None
) -> Tensor:
    """Multi-head attention among the tokens that share a pixel position, read and written in place on the map.

    MobileViT (arXiv 2110.02178, section 3.1) unfolds a map into P = patch_h * patch_w groups of
    N = (H / patch_h) * (W / patch_w) tokens, attends inside each group and folds back. For each group p and head:
    ``out = softmax(scale * Q K^T) V``. Softmax and sums are in float32 (float64 for float64).

    Args:
        qkv: ``[B, 3C, H, W]``, channels query | key | value, each head-major (C = num_heads * head_dim). Any
            strides; channels_last is read without a copy. float32, float64, bfloat16 or float16.
        num_heads: heads; divides C.
        patch_size: (patch_h, patch_w), or one int for both. The unfolded layout ``[B, 3C, P, N]`` is
            ``patch_size=(P, 1)``.
        scale: factor of the query; head_dim ** -0.5 by default.

    Returns:
        ``[B, C, H, W]``, dtype of ``qkv`` (the autocast dtype under autocast), channels_last. Differentiable once.

    Raises:
        ValueError: wrong dimensions, channels that num_heads does not divide, H or W not divisible by the patch.
        TypeError: not floating-point.
        RuntimeError: the chosen backend cannot run here; the message says why.
    """
    patch = as_pair(patch_size)
    check_floating("qkv", qkv)
    if select_backend("unfold_attn_fold", qkv) == "reference":
        return call_reference(
            reference.unfold_attn_fold, check_unfold_attn_fold, qkv, num_heads, patch, scale
        )
    return _op(qkv, num_heads, patch, scale)


@torch.library.register_fake("mobilevit::unfold_attn_fold")
def _fake(qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None) -> Tensor:
    check_unfold_attn_fold(qkv, num_heads, as_pair(patch_size))
    return channels_last_empty(qkv, qkv.shape[1] // 3)


@torch.library.register_fake("mobilevit::unfold_attn_fold_forward")
def _forward_fake(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> tuple[Tensor, Tensor]:
    out = _fake(qkv, num_heads, patch_size, scale)
    ph, pw = patch_size
    num_tokens = (qkv.shape[2] // ph) * (qkv.shape[3] // pw)
    stats_shape = (qkv.shape[0], ph * pw, num_heads, num_tokens)
    return out, qkv.new_empty(stats_shape, dtype=accumulate_dtype(qkv.dtype))


@torch.library.register_fake("mobilevit::unfold_attn_fold_backward")
def _backward_fake(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    scale: float | None = None,
) -> Tensor:
    return channels_last_empty(qkv, qkv.shape[1])


forbid_double_backward(_backward_op)
register_autocast(_op)
register_triton("unfold_attn_fold", "unfold_attn_fold", check_unfold_attn_fold)
register_triton("unfold_attn_fold_forward", "unfold_attn_fold", check_unfold_attn_fold)
register_triton("unfold_attn_fold_backward", "unfold_attn_fold", check_unfold_attn_fold_backward)

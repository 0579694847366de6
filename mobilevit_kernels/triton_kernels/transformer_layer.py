"""Launcher of a whole transformer layer of MobileViT v1, for inference: five kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.triton_kernels.token_linear import linear_residual, norm_linear
from mobilevit_kernels.triton_kernels.unfold_attn_fold import unfold_attn_fold


def transformer_layer(
    x: Tensor,
    norm1_weight: Tensor,
    norm1_bias: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    proj_weight: Tensor,
    proj_bias: Tensor,
    norm2_weight: Tensor,
    norm2_bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    eps: float,
) -> Tensor:
    """Norms run inside the projections after them, residuals inside those before. See the op of this name."""
    x = x.contiguous(memory_format=torch.channels_last)
    qkv = norm_linear(x, norm1_weight, norm1_bias, eps, qkv_weight.contiguous(), qkv_bias, silu=False)
    attended = unfold_attn_fold(qkv, num_heads, patch_size)
    x = linear_residual(attended, proj_weight.contiguous(), proj_bias, x)
    hidden = norm_linear(x, norm2_weight, norm2_bias, eps, fc1_weight.contiguous(), fc1_bias, silu=True)
    return linear_residual(hidden, fc2_weight.contiguous(), fc2_bias, x)

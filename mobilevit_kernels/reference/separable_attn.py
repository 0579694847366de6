"""Plain PyTorch definition of ``separable_attn``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.reference.tokens import fold, unfold


def separable_attn(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: tuple[int, int] = (2, 2),
) -> Tensor:
    """Separable self-attention (arXiv 2206.02680, equation 3) among the tokens that share a pixel position.

    Same contract as :func:`mobilevit_kernels.separable_attn`; differentiable to any order.

    Args:
        x: ``[B, C, H, W]``.
        qkv_weight: ``[1 + 2C, C]`` or ``[1 + 2C, C, 1, 1]``, rows query | key | value.
        qkv_bias: ``[1 + 2C]`` or None.
        out_weight: ``[C, C]`` or ``[C, C, 1, 1]``.
        out_bias: ``[C]`` or None.
        patch_size: (patch_h, patch_w).

    Returns:
        ``[B, C, H, W]`` in channels_last memory.
    """
    channels = x.shape[1]
    tokens = unfold(x, patch_size)  # [B, C, P, N]
    qkv = _project(tokens, qkv_weight, qkv_bias)
    query, key, value = qkv.split([1, channels, channels], dim=1)
    scores = query.softmax(dim=-1)  # [B, 1, P, N]
    context = (key * scores).sum(dim=-1, keepdim=True)  # [B, C, P, 1]
    out = _project(value.relu() * context, out_weight, out_bias)
    return fold(out, (x.shape[2], x.shape[3]), patch_size).contiguous(memory_format=torch.channels_last)


def _project(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 1x1 convolution of ``[B, C, P, N]``, which may hold no token."""
    return F.linear(tokens.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)

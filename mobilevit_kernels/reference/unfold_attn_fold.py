"""Plain PyTorch definition of ``unfold_attn_fold``."""

import torch
from torch import Tensor

from mobilevit_kernels.reference.tokens import fold, unfold


def unfold_attn_fold(
    qkv: Tensor, num_heads: int, patch_size: tuple[int, int] = (2, 2), scale: float | None = None
) -> Tensor:
    """Multi-head attention among the tokens that share a pixel position (arXiv 2110.02178, equation 1).

    Same contract as :func:`mobilevit_kernels.unfold_attn_fold`; differentiable to any order.

    Args:
        qkv: ``[B, 3C, H, W]``, channels query | key | value, each head-major.
        num_heads: heads; divides C.
        patch_size: (patch_h, patch_w).
        scale: factor of the query; head_dim ** -0.5 by default.

    Returns:
        ``[B, C, H, W]`` in channels_last memory.
    """
    batch, channels3, height, width = qkv.shape
    head_dim = channels3 // (3 * num_heads)
    scale = head_dim**-0.5 if scale is None else scale
    tokens = unfold(qkv, patch_size)  # [B, 3C, P, N]
    positions, num_tokens = tokens.shape[2:]
    heads = tokens.reshape(batch, 3, num_heads, head_dim, positions, num_tokens).permute(1, 0, 4, 2, 5, 3)
    query, key, value = heads.unbind(0)  # [B, P, heads, N, head_dim]
    scores = (query * scale) @ key.transpose(-2, -1)  # [B, P, heads, N, N]
    attended = scores.softmax(dim=-1) @ value  # [B, P, heads, N, head_dim]
    merged = attended.permute(0, 2, 4, 1, 3).reshape(batch, channels3 // 3, positions, num_tokens)
    out = fold(merged, (height, width), patch_size)
    return out.contiguous(memory_format=torch.channels_last)

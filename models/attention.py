"""Attention layers with their projections. Each takes and returns a map ``[B, C, H, W]`` in channels_last memory."""

from collections.abc import Sequence

from torch import Tensor, nn

from mobilevit_kernels.models.convolve import project
from mobilevit_kernels.ops import separable_attn, unfold_attn_fold
from mobilevit_kernels.ops.registration import as_pair


class MultiHeadAttention(nn.Module):
    """Multi-head self-attention among the tokens that share a pixel position (arXiv 2110.02178, section 3.1).

    Args:
        dim: channels C.
        num_heads: heads; divides ``dim``.
        patch_size: (patch_h, patch_w), or one int for both.
        dropout: rate after the output projection.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self, dim: int, num_heads: int = 4, patch_size: int | Sequence[int] = (2, 2), dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.patch_size = as_pair(patch_size)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; H and W divisible by the patch."""
        qkv = project(x.permute(0, 2, 3, 1), self.qkv).permute(0, 3, 1, 2)
        attended = unfold_attn_fold(qkv, self.num_heads, self.patch_size)
        out = project(attended.permute(0, 2, 3, 1), self.proj)
        return self.proj_drop(out).permute(0, 3, 1, 2)


class SeparableAttention(nn.Module):
    """Separable self-attention of linear cost (arXiv 2206.02680, equation 3).

    Args:
        dim: channels C.
        patch_size: (patch_h, patch_w), or one int for both.
        dropout: rate after the output projection.
    """

    def __init__(self, dim: int, patch_size: int | Sequence[int] = (2, 2), dropout: float = 0.0) -> None:
        super().__init__()
        self.patch_size = as_pair(patch_size)
        self.qkv_proj = nn.Conv2d(dim, 1 + 2 * dim, kernel_size=1)
        self.out_proj = nn.Conv2d(dim, dim, kernel_size=1)
        self.out_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; H and W divisible by the patch."""
        out = separable_attn(
            x,
            self.qkv_proj.weight,
            self.qkv_proj.bias,
            self.out_proj.weight,
            self.out_proj.bias,
            self.patch_size,
        )
        return self.out_drop(out)


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError unless ``num_heads`` is positive and divides ``dim``."""
    if num_heads < 1 or dim % num_heads != 0:
        raise ValueError(f"num_heads: expected a positive divisor of dim={dim}, got {num_heads}")

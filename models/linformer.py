"""Linformer attention, the second unit in the comparison of attention units in the MobileViTv2 paper."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models.attention import check_heads
from mobilevit_kernels.ops.registration import as_pair
from mobilevit_kernels.reference import fold, unfold


class LinformerAttention(nn.Module):
    """Multi-head attention to at most 256 projected keys and values per pixel position (arXiv 2006.04768).

    The keys and values of the N tokens of a pixel position are projected along the token axis to
    ``min(max_projected, max_tokens)`` of each, shared by the heads, before plain attention.
    With fewer than ``max_tokens`` tokens the first columns of the projections are used.

    Args:
        dim: channels C.
        max_tokens: most tokens per pixel position that a map may have: columns of the projections.
        num_heads: heads; divides ``dim``.
        patch_size: (patch_h, patch_w), or one int for both.
        dropout: rate after the output projection.
        max_projected: most projected keys; 256 in arXiv 2206.02680, figure 1.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``, or a size below 1.
    """

    def __init__(
        self,
        dim: int,
        max_tokens: int,
        num_heads: int = 4,
        patch_size: int | Sequence[int] = (2, 2),
        dropout: float = 0.0,
        max_projected: int = 256,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if max_tokens < 1 or max_projected < 1:
            raise ValueError(
                f"max_tokens, max_projected: expected positive ints, got {max_tokens} and {max_projected}"
            )
        self.num_heads = num_heads
        self.max_tokens = max_tokens
        self.patch_size = as_pair(patch_size)
        num_projected = min(max_projected, max_tokens)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.key_proj = nn.Parameter(torch.empty(num_projected, max_tokens))
        self.value_proj = nn.Parameter(torch.empty(num_projected, max_tokens))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the token projections from N(0, 1 / projected tokens), as the Linformer paper's theorem 2 does."""
        std = self.key_proj.shape[0] ** -0.5
        nn.init.normal_(self.key_proj, std=std)
        nn.init.normal_(self.value_proj, std=std)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``; H and W divisible by the patch.

        Raises:
            ValueError: the map has more than ``max_tokens`` tokens per pixel position.
        """
        height, width = x.shape[2:]
        qkv = unfold(self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), self.patch_size)  # [B, 3C, P, N]
        num_tokens = qkv.shape[3]
        if num_tokens > self.max_tokens:
            raise ValueError(
                f"x: a {height} x {width} map has {num_tokens} tokens per pixel position, but this Linformer layer "
                f"was built for at most {self.max_tokens}; create the model with a larger img_size"
            )
        query, key, value = self._split_heads(qkv)
        key = self.key_proj[:, :num_tokens] @ key
        value = self.value_proj[:, :num_tokens] @ value
        attended = F.scaled_dot_product_attention(query, key, value)  # [B, P, heads, N, head_dim]
        merged = attended.permute(0, 2, 4, 1, 3).flatten(1, 2)  # [B, C, P, N]
        out = self.proj(fold(merged, (height, width), self.patch_size).permute(0, 2, 3, 1))
        return self.proj_drop(out).permute(0, 3, 1, 2)

    def _split_heads(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[B, 3C, P, N]`` -> query, key and value, each ``[B, P, heads, N, head_dim]``."""
        batch, channels3, positions, num_tokens = qkv.shape
        head_dim = channels3 // (3 * self.num_heads)
        heads = qkv.reshape(batch, 3, self.num_heads, head_dim, positions, num_tokens)
        query, key, value = heads.permute(1, 0, 4, 2, 5, 3).unbind(0)
        return query, key, value

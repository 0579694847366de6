"""Pre-norm transformer layers: on tokens ``[B, H, W, C]`` with LayerNorm (v1), on maps with GroupNorm (v2)."""

from typing import cast

from torch import Tensor, nn

from mobilevit_kernels.models.attention import MultiHeadAttention, SeparableAttention
from mobilevit_kernels.models.convolve import convolve, project
from mobilevit_kernels.models.fused_layers import parameters_of, runs_fused
from mobilevit_kernels.models.layers import DropPath
from mobilevit_kernels.ops import separable_transformer_layer, transformer_layer


class Mlp(nn.Module):
    """Feed-forward network of a transformer layer: linear, SiLU, linear.

    Args:
        dim: channels C.
        hidden_dim: channels between the two linear layers.
        dropout: rate after the second.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.act = nn.SiLU()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``."""
        return self.drop(project(project(x, self.fc1), self.fc2, self.act))


class ConvMlp(nn.Module):
    """Feed-forward network on a map: the linear layers are 1x1 convolutions with bias.

    Args:
        dim: channels C.
        hidden_dim: channels between the two convolutions.
        dropout: rate after the second.
    """

    def __init__(self, dim: int, hidden_dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden_dim, kernel_size=1)
        self.act = nn.SiLU()
        self.fc2 = nn.Conv2d(hidden_dim, dim, kernel_size=1)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        return self.drop(convolve(convolve(x, self.fc1), self.fc2, self.act))


class TransformerLayer(nn.Module):
    """Transformer layer of MobileViT v1 and of v3 on v1 (arXiv 2110.02178).

    In 16-bit inference at small batches on a GPU it runs as one op, :func:`mobilevit_kernels.ops.transformer_layer`.

    Args:
        dim: channels C.
        attention: a layer on maps ``[B, C, H, W]``, such as ``MultiHeadAttention``.
        mlp_ratio: hidden channels of the feed-forward network over ``dim``.
        dropout: rate after the feed-forward network.
        drop_path: stochastic depth rate.
    """

    _fused_parts = {
        "attn": MultiHeadAttention,
        "norm1": nn.LayerNorm,
        "attn.qkv": nn.Linear,
        "attn.proj": nn.Linear,
        "norm2": nn.LayerNorm,
        "mlp.fc1": nn.Linear,
        "mlp.act": nn.SiLU,
        "mlp.fc2": nn.Linear,
    }
    _fused_parameters = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")

    def __init__(
        self,
        dim: int,
        attention: nn.Module,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attention
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, H, W, C]`` -> ``[B, H, W, C]``; the permutations are views."""
        if self.norm1.eps == self.norm2.eps and runs_fused("unfold_attn_fold", x, self, self._fused_parts):
            return self._as_one_op(x, cast("MultiHeadAttention", self.attn))
        attended = self.attn(self.norm1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.drop_path1(attended)
        return x + self.drop_path2(self.mlp(self.norm2(x)))

    def _as_one_op(self, x: Tensor, attention: MultiHeadAttention) -> Tensor:
        parameters = parameters_of(self, self._fused_parameters)
        heads, patch, eps = attention.num_heads, attention.patch_size, self.norm1.eps
        return transformer_layer(x.permute(0, 3, 1, 2), *parameters, heads, patch, eps).permute(0, 2, 3, 1)


class SeparableTransformerLayer(nn.Module):
    """Transformer layer of MobileViT v2 and of v3 on v2 (arXiv 2206.02680).

    In 16-bit inference at small batches on a GPU it runs as one op,
    :func:`mobilevit_kernels.ops.separable_transformer_layer`.
    GroupNorm has one group: its statistics are those of the whole map of a sample, not of a token.

    Args:
        dim: channels C.
        patch_size: (patch_h, patch_w).
        mlp_ratio: hidden channels of the feed-forward network over ``dim``.
        dropout: rate after the attention and after the feed-forward network.
        drop_path: stochastic depth rate.
    """

    _fused_parts = {
        "attn": SeparableAttention,
        "norm1": nn.GroupNorm,
        "attn.qkv_proj": nn.Conv2d,
        "attn.out_proj": nn.Conv2d,
        "norm2": nn.GroupNorm,
        "mlp.fc1": nn.Conv2d,
        "mlp.act": nn.SiLU,
        "mlp.fc2": nn.Conv2d,
    }
    _fused_parameters = ("norm1", "attn.qkv_proj", "attn.out_proj", "norm2", "mlp.fc1", "mlp.fc2")

    def __init__(
        self,
        dim: int,
        patch_size: tuple[int, int] = (2, 2),
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, dim)
        self.attn = SeparableAttention(dim, patch_size, dropout)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.GroupNorm(1, dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), dropout)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        if self.norm1.eps == self.norm2.eps and runs_fused("separable_attn", x, self, self._fused_parts):
            parameters = parameters_of(self, self._fused_parameters)
            return separable_transformer_layer(
                x, *parameters, patch_size=self.attn.patch_size, eps=self.norm1.eps
            )
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))

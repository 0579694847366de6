"""Whole transformers, with the norm after them, as modules of one op; for inference on the CPU."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.token_map import to_map, to_tokens
from mobilevit_kernels.ops.packing import LayerParameters, pack_separable_transformer, pack_transformer
from mobilevit_kernels.ops.separable_transformer import separable_transformer
from mobilevit_kernels.ops.transformer import transformer


class FusedTransformer(nn.Module):
    """Transformer of MobileViT v1 and the LayerNorm after it (:func:`mobilevit_kernels.ops.transformer`).

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.transformer_layer`.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        num_heads: heads.
        patch_size: (patch_h, patch_w).
        eps: of all norms.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    packed: Tensor

    def __init__(
        self,
        layers: Sequence[LayerParameters],
        norm_weight: Tensor,
        norm_bias: Tensor,
        num_heads: int,
        patch_size: tuple[int, int],
        eps: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_dim = len(layers), layers[0][8].shape[0]
        self.num_heads, self.patch_size, self.eps = num_heads, patch_size, eps
        self.register_buffer("packed", pack_transformer(layers, norm_weight, norm_bias, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens ``[B, H, W, C]`` -> tokens."""
        sizes = (self.num_layers, self.num_heads, self.hidden_dim)
        return to_tokens(transformer(to_map(x), self.packed, *sizes, self.patch_size, self.eps))

    def extra_repr(self) -> str:
        """Shows the sizes in ``print(model)``."""
        return f"num_layers={self.num_layers}, num_heads={self.num_heads}, patch_size={self.patch_size}"


class FusedSeparableTransformer(nn.Module):
    """Transformer of MobileViT v2 and the GroupNorm after it (:func:`mobilevit_kernels.ops.separable_transformer`).

    Args:
        layers: of each layer the twelve parameters of :func:`mobilevit_kernels.ops.separable_transformer_layer`.
        norm_weight, norm_bias: ``[C]``, of the norm after the last layer.
        patch_size: (patch_h, patch_w).
        eps: of all norms.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    packed: Tensor

    def __init__(
        self,
        layers: Sequence[LayerParameters],
        norm_weight: Tensor,
        norm_bias: Tensor,
        patch_size: tuple[int, int],
        eps: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.num_layers, self.hidden_dim = len(layers), layers[0][8].shape[0]
        self.patch_size, self.eps = patch_size, eps
        self.register_buffer("packed", pack_separable_transformer(layers, norm_weight, norm_bias, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, H, W]``."""
        return separable_transformer(
            x, self.packed, self.num_layers, self.hidden_dim, self.patch_size, self.eps
        )

    def extra_repr(self) -> str:
        """Shows the sizes in ``print(model)``."""
        return f"num_layers={self.num_layers}, patch_size={self.patch_size}"

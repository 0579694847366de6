"""The plain PyTorch definition of every op: readable, differentiable, and the truth that kernels are tested against."""

from mobilevit_kernels.reference.batch_norm import batch_norm
from mobilevit_kernels.reference.batch_norm_conv2d import batch_norm_conv2d
from mobilevit_kernels.reference.convolution import convolution
from mobilevit_kernels.reference.depthwise_conv2d import depthwise_conv2d
from mobilevit_kernels.reference.depthwise_convolution import depthwise_convolution
from mobilevit_kernels.reference.inverted_residual import inverted_residual
from mobilevit_kernels.reference.pointwise_conv2d import pointwise_conv2d
from mobilevit_kernels.reference.pooled_linear import pooled_linear
from mobilevit_kernels.reference.separable_attn import separable_attn
from mobilevit_kernels.reference.separable_transformer_layer import separable_transformer_layer
from mobilevit_kernels.reference.tokens import fold, unfold
from mobilevit_kernels.reference.transformer_layer import transformer_layer
from mobilevit_kernels.reference.unfold_attn_fold import unfold_attn_fold

__all__ = [
    "batch_norm",
    "batch_norm_conv2d",
    "convolution",
    "depthwise_conv2d",
    "depthwise_convolution",
    "fold",
    "inverted_residual",
    "pointwise_conv2d",
    "pooled_linear",
    "separable_attn",
    "separable_transformer_layer",
    "transformer_layer",
    "unfold",
    "unfold_attn_fold",
]

"""The ops: public functions, and what torch needs to know of each (fake, autograd, autocast)."""

from mobilevit_kernels import _extension

_extension.load()

from mobilevit_kernels.ops.batch_norm import batch_norm  # noqa: E402
from mobilevit_kernels.ops.batch_norm_conv2d import batch_norm_conv2d  # noqa: E402
from mobilevit_kernels.ops.convolution import convolution  # noqa: E402
from mobilevit_kernels.ops.depthwise_conv2d import depthwise_conv2d  # noqa: E402
from mobilevit_kernels.ops.depthwise_convolution import depthwise_convolution  # noqa: E402
from mobilevit_kernels.ops.inverted_residual import inverted_residual  # noqa: E402
from mobilevit_kernels.ops.map_memory import release_idle_maps  # noqa: E402
from mobilevit_kernels.ops.pointwise_conv2d import pointwise_conv2d  # noqa: E402
from mobilevit_kernels.ops.pooled_linear import pooled_linear  # noqa: E402
from mobilevit_kernels.ops.separable_attn import separable_attn  # noqa: E402
from mobilevit_kernels.ops.separable_transformer import separable_transformer  # noqa: E402
from mobilevit_kernels.ops.separable_transformer_layer import separable_transformer_layer  # noqa: E402
from mobilevit_kernels.ops.transformer import transformer  # noqa: E402
from mobilevit_kernels.ops.transformer_layer import transformer_layer  # noqa: E402
from mobilevit_kernels.ops.unfold_attn_fold import unfold_attn_fold  # noqa: E402
from mobilevit_kernels.ops.winograd_convolution import winograd_convolution  # noqa: E402

__all__ = [
    "batch_norm",
    "batch_norm_conv2d",
    "convolution",
    "depthwise_conv2d",
    "depthwise_convolution",
    "inverted_residual",
    "pointwise_conv2d",
    "pooled_linear",
    "release_idle_maps",
    "separable_attn",
    "separable_transformer",
    "separable_transformer_layer",
    "transformer",
    "transformer_layer",
    "unfold_attn_fold",
    "winograd_convolution",
]

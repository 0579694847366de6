"""Plain PyTorch definition of ``batch_norm_conv2d``."""

from torch import Tensor

from mobilevit_kernels.reference.batch_norm import batch_norm
from mobilevit_kernels.reference.depthwise_conv2d import depthwise_conv2d
from mobilevit_kernels.reference.pointwise_conv2d import pointwise_conv2d


def batch_norm_conv2d(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    eps: float = 1e-5,
    silu: bool = False,
    stride: int = 1,
    dilation: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the statistics of the batch, SiLU, and a 1x1 or a 3x3 depthwise convolution.

    Same contract as :func:`mobilevit_kernels.ops.batch_norm_conv2d`; differentiable to any order.

    Args:
        x: ``[B, C, H, W]``.
        norm_weight, norm_bias: ``[C]``.
        weight: ``[O, C, 1, 1]`` or ``[C, 1, 3, 3]``.
        eps: added to the variance.
        silu: activates the normalised map.
        stride, dilation: of the depthwise convolution.

    Returns:
        The convolution's result, and the mean and the variance of each channel of ``x``, which have no gradient.
    """
    normed, mean, var = batch_norm(x, norm_weight, norm_bias, eps, silu)
    if weight.shape[2:] == (1, 1):
        return pointwise_conv2d(normed, weight), mean, var
    return depthwise_conv2d(normed, weight, stride, dilation), mean, var

"""Plain PyTorch definition of ``depthwise_conv2d``."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """3x3 depthwise convolution, padded with zeros as wide as its dilation.

    Same contract as :func:`mobilevit_kernels.ops.depthwise_conv2d`; differentiable to any order.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[C, 1, 3, 3]``.
        stride, dilation: as in :func:`torch.nn.functional.conv2d`, alike on both axes.

    Returns:
        ``[B, C, ceil(H / stride), ceil(W / stride)]``.
    """
    return F.conv2d(x, weight, None, stride, padding=dilation, dilation=dilation, groups=x.shape[1])

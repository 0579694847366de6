"""Depthwise convolution with its activation in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, dilation: int = 1, silu: bool = False
) -> Tensor:
    """3x3 depthwise convolution, padded as wide as its dilation, and with ``silu`` x * sigmoid(x) of its result.

    Args:
        x: ``[B, C, H, W]``.
        weight, bias: ``[C, 1, 3, 3]``, ``[C]``.
        stride, dilation: as in :func:`torch.nn.functional.conv2d`.
        silu: activates the result.

    Returns:
        ``[B, C, ceil(H / stride), ceil(W / stride)]``.
    """
    out = F.conv2d(x, weight, bias, stride, padding=dilation, dilation=dilation, groups=x.shape[1])
    return F.silu(out) if silu else out

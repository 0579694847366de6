"""Convolution with its activation in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    silu: bool = False,
) -> Tensor:
    """Dense 2-D convolution and, with ``silu``, x * sigmoid(x) of its result.

    Args:
        x: ``[B, C, H, W]``.
        weight, bias: ``[C_out, C, k, k]``, ``[C_out]``.
        stride, padding, dilation: as in :func:`torch.nn.functional.conv2d`.
        silu: activates the result.

    Returns:
        ``[B, C_out, H', W']``, H' = (H + 2 padding - dilation (k - 1) - 1) // stride + 1, and W' alike.
    """
    out = F.conv2d(x, weight, bias, stride, padding, dilation)
    return F.silu(out) if silu else out

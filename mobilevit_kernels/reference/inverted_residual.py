"""Inverted residual block in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor

from mobilevit_kernels.reference.depthwise_convolution import depthwise_convolution


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    stride: int = 1,
    dilation: int = 1,
    residual: bool = False,
) -> Tensor:
    """1x1 expand, SiLU, 3x3 depthwise, SiLU, 1x1 project (arXiv 1801.04381, figure 3d, with SiLU for ReLU6).

    Args:
        x: ``[B, C, H, W]``.
        expand_weight, expand_bias: ``[hidden, C, 1, 1]``, ``[hidden]``.
        depthwise_weight, depthwise_bias: ``[hidden, 1, 3, 3]``, ``[hidden]``.
        project_weight, project_bias: ``[C_out, hidden, 1, 1]``, ``[C_out]``.
        stride: of the depthwise convolution.
        dilation: of its kernel; the padding is as wide.
        residual: adds ``x``; stride 1 and C_out = C only.

    Returns:
        ``[B, C_out, ceil(H / stride), ceil(W / stride)]``.
    """
    hidden = F.silu(F.conv2d(x, expand_weight, expand_bias))
    filtered = depthwise_convolution(hidden, depthwise_weight, depthwise_bias, stride, dilation, silu=True)
    out = F.conv2d(filtered, project_weight, project_bias)
    return x + out if residual else out

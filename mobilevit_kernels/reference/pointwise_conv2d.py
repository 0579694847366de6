"""Plain PyTorch definition of ``pointwise_conv2d``."""

import torch.nn.functional as F
from torch import Tensor


def pointwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, silu_input: bool = False
) -> Tensor:
    """1x1 convolution, with ``silu_input`` of SiLU(x).

    Same contract as :func:`mobilevit_kernels.ops.pointwise_conv2d`; differentiable to any order.

    Args:
        x: ``[B, C, H, W]``.
        weight: ``[O, C]`` or ``[O, C, 1, 1]``.
        bias: ``[O]``.
        silu_input: activates ``x`` first.

    Returns:
        ``[B, O, H, W]``.
    """
    return F.conv2d(F.silu(x) if silu_input else x, weight.reshape(weight.shape[0], -1, 1, 1), bias)

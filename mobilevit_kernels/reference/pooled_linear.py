"""Global average pooling and a linear layer in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def pooled_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer on the mean of all pixels: the head of a classifier.

    Args:
        x: ``[B, C, H, W]``.
        weight, bias: ``[out_features, C]``, ``[out_features]``.

    Returns:
        ``[B, out_features]``.
    """
    return F.linear(x.mean(dim=(2, 3)), weight, bias)

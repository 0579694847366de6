"""Plain PyTorch definition of ``batch_norm``."""

import torch.nn.functional as F
from torch import Tensor


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, silu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the statistics of the batch (arXiv 1502.03167, algorithm 1), then SiLU.

    Same contract as :func:`mobilevit_kernels.ops.batch_norm`; differentiable to any order.

    Args:
        x: ``[B, C, H, W]``.
        weight, bias: ``[C]``.
        eps: added to the variance.
        silu: activates the result.

    Returns:
        ``[B, C, H, W]``, and the mean and the variance of each channel, ``[C]``, which have no gradient.
    """
    out = F.batch_norm(x, None, None, weight.to(x.dtype), bias.to(x.dtype), training=True, eps=eps)
    wide = x.detach().to(weight.dtype)
    mean, var = wide.mean(dim=(0, 2, 3)), wide.var(dim=(0, 2, 3), unbiased=False)
    return F.silu(out) if silu else out, mean, var

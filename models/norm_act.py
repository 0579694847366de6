"""BatchNorm and the activation behind it: in training on the CPU as one op."""

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.fused_layers import is_plain, on_cpu_kernels
from mobilevit_kernels.ops.batch_norm import batch_norm


def norm_act(x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """``act(norm(x))``; a training BatchNorm with its SiLU (or none) runs as :func:`mobilevit_kernels.ops.batch_norm`.

    Other norms (SyncBatchNorm, frozen ones, those without running statistics), other activations, modules with hooks,
    other devices than the CPU and the backend "reference" take the modules themselves.

    Args:
        x: ``[B, C, H, W]``.
        norm, act: what is called in this order.
    """
    if not _runs_fused(x, norm, act):
        return act(norm(x))
    assert isinstance(norm, nn.BatchNorm2d)
    out, mean, var = batch_norm(x, norm.weight, norm.bias, norm.eps, isinstance(act, nn.SiLU))
    _update_statistics(norm, mean, var, x.numel() // x.shape[1])
    return out


def _runs_fused(x: Tensor, norm: nn.Module, act: nn.Module) -> bool:
    if not (norm.training and is_plain(norm, nn.BatchNorm2d)):
        return False
    if norm.weight is None or norm.running_mean is None or norm.momentum is None:
        return False
    if not (is_plain(act, nn.SiLU) or is_plain(act, nn.Identity)):
        return False
    return on_cpu_kernels(x) and x.numel() > x.shape[1]


@torch.no_grad()
def _update_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics towards those of a batch; the variance as an unbiased estimate."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    unbiased = var * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)

"""BatchNorm and the activation behind it: in training on the CPU as one op."""

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.fused_layers import has_hooks, is_plain, is_silu, on_cpu_kernels
from mobilevit_kernels.ops.batch_norm import batch_norm


def norm_act(
    x: Tensor, norm: nn.Module, act: nn.Module, kind: type[nn.BatchNorm2d] = nn.BatchNorm2d
) -> Tensor:
    """``act(norm(x))``; a training BatchNorm with its SiLU (or none) runs as :func:`mobilevit_kernels.ops.batch_norm`.

    Other norms (SyncBatchNorm, frozen ones, those without running statistics), other activations, modules with hooks,
    other devices than the CPU and the backend "reference" take the modules themselves.

    Args:
        x: ``[B, C, H, W]``.
        norm, act: what is called in this order; an activation that is a part of the norm is called by it.
        kind: the class of a norm that the op may stand for.
    """
    if fuses_norm_act(x, norm, act, kind):
        return fused_norm_act(x, norm, act)
    x = norm(x)
    return x if act in norm.children() else act(x)


def fuses_norm_act(
    x: Tensor, norm: nn.Module, act: nn.Module, kind: type[nn.BatchNorm2d] = nn.BatchNorm2d
) -> bool:
    """Whether :func:`fused_norm_act` may stand for a norm and the activation behind it.

    Args:
        x: what they are given.
        norm: the norm.
        act: the activation, a module of its own or a part of the norm.
        kind: the class that the norm must have.
    """
    if not (norm.training and is_plain(norm, kind)):
        return False
    assert isinstance(norm, nn.BatchNorm2d)
    if norm.weight is None or norm.running_mean is None or norm.momentum is None:
        return False
    if not (is_silu(act) or type(act) is nn.Identity) or has_hooks(act):
        return False
    return norm.track_running_stats and on_cpu_kernels(x) and x.numel() > x.shape[1]


def fused_norm_act(x: Tensor, norm: nn.Module, act: nn.Module) -> Tensor:
    """BatchNorm of ``x`` and its activation as one op, where :func:`fuses_norm_act` says so.

    Args:
        x: ``[B, C, H, W]``.
        norm: gives the parameters; its running statistics move.
        act: SiLU or nothing.
    """
    assert isinstance(norm, nn.BatchNorm2d)
    out, mean, var = batch_norm(x, norm.weight, norm.bias, norm.eps, is_silu(act))
    update_statistics(norm, mean, var, x.numel() // x.shape[1])
    return out


@torch.no_grad()
def update_statistics(norm: nn.BatchNorm2d, mean: Tensor, var: Tensor, count: int) -> None:
    """Moves the running statistics towards those of a batch; the variance as an unbiased estimate.

    Args:
        norm: has running statistics and a momentum.
        mean, var: of each channel, ``[C]``.
        count: values of a channel in the batch.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.momentum is not None
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    unbiased = var * (count / (count - 1))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), norm.momentum)

"""``mobilevit::batch_norm``: BatchNorm of a batch and the SiLU behind it as one op, for training on the CPU."""

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_batch_norm
from mobilevit_kernels.ops.registration import accumulate_dtype, channels_last_empty, forbid_double_backward

_op = torch.ops.mobilevit.batch_norm.default
_backward_op = torch.ops.mobilevit.batch_norm_backward.default


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5, silu: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """BatchNorm by the statistics of the batch, and with ``silu`` x * sigmoid(x) of its result.

    ``out = act((x - mean) / sqrt(var + eps) * weight + bias)`` (arXiv 1502.03167, algorithm 1). For its backward pass
    it keeps x and the statistics; everything between is computed again. Running statistics are the caller's.

    Args:
        x: ``[B, C, H, W]``, any strides, float32, float64, bfloat16 or float16 on the CPU; channels_last is read
            without a copy.
        weight, bias: ``[C]``, floating-point.
        eps: added to the variance.
        silu: activates the result.

    Returns:
        ``[B, C, H, W]``, dtype of ``x``, channels_last, differentiable once; mean and variance (over B * H * W values)
        of each channel, ``[C]``, float32 (float64 for float64), without gradients.

    Raises:
        ValueError: not four dimensions, fewer than two values per channel, parameters of another size, a negative eps.
        TypeError: not floating-point.
    """
    return _op(x, weight, bias, eps, silu)


@torch.library.register_fake("mobilevit::batch_norm")
def _fake(x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> tuple[Tensor, Tensor, Tensor]:
    check_batch_norm(x, weight, bias, eps)
    mean, var = (x.new_empty(x.shape[1], dtype=accumulate_dtype(x.dtype)) for _ in range(2))
    return channels_last_empty(x, x.shape[1]), mean, var


@torch.library.register_fake("mobilevit::batch_norm_backward")
def _backward_fake(
    grad_out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return channels_last_empty(x, x.shape[1]), torch.empty_like(weight), torch.empty_like(bias)


forbid_double_backward(_backward_op)

"""Shape and dtype checks of the ops for the paths without a compiled kernel; csrc/checks.h says the same in C++."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mobilevit_kernels.ops.registration import accumulate_dtype


def check_patch_grid(name: str, x: Tensor, patch_size: Sequence[int]) -> None:
    """Raises ValueError unless ``x`` is 4-d and divides into patches."""
    if x.dim() != 4:
        raise ValueError(f"{name}: expected 4 dimensions [B, C, H, W], got {x.dim()}")
    ph, pw = patch_size
    if ph < 1 or pw < 1:
        raise ValueError(f"patch_size: expected two positive ints, got ({ph}, {pw})")
    height, width = x.shape[2:]
    if height % ph != 0 or width % pw != 0:
        raise ValueError(
            f"{name}: H and W must be divisible by patch_size ({ph}, {pw}), got {height} x {width}"
        )


def check_unfold_attn_fold(
    qkv: Tensor, num_heads: int, patch_size: Sequence[int], scale: float | None = None
) -> None:
    """Raises ValueError or TypeError where the arguments of ``unfold_attn_fold`` break its contract."""
    check_patch_grid("qkv", qkv, patch_size)
    check_floating("qkv", qkv)
    if num_heads < 1:
        raise ValueError(f"num_heads: expected a positive int, got {num_heads}")
    channels = qkv.shape[1]
    if channels < 1 or channels % (3 * num_heads) != 0:
        raise ValueError(
            f"qkv: channels must be 3 * num_heads * head_dim with num_heads={num_heads}, got {channels}"
        )


def check_unfold_attn_fold_backward(
    grad_out: Tensor,
    qkv: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    num_heads: int,
    patch_size: Sequence[int],
    scale: float | None = None,
) -> None:
    """Raises ValueError or TypeError where the arguments of ``unfold_attn_fold_backward`` break its contract."""
    check_unfold_attn_fold(qkv, num_heads, patch_size)
    batch, channels3, height, width = qkv.shape
    ph, pw = patch_size
    for name, tensor in (("grad_out", grad_out), ("out", out)):
        _check_saved(name, tensor, (batch, channels3 // 3, height, width), qkv.dtype, qkv)
    tokens = (height // ph) * (width // pw)
    _check_saved("logsumexp", logsumexp, (batch, ph * pw, num_heads, tokens), torch.float32, qkv)


def check_separable_attn(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
    patch_size: Sequence[int],
) -> None:
    """Raises ValueError or TypeError where the arguments of ``separable_attn`` break its contract."""
    check_patch_grid("x", x, patch_size)
    check_floating("x", x)
    channels = x.shape[1]
    if channels < 1:
        raise ValueError("x: expected at least one channel, got 0")
    _check_weight("qkv_weight", qkv_weight, 1 + 2 * channels, x)
    _check_bias("qkv_bias", qkv_bias, 1 + 2 * channels, x)
    _check_weight("out_weight", out_weight, channels, x)
    _check_bias("out_bias", out_bias, channels, x)


def check_separable_attn_backward(
    grad_out: Tensor,
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    out_weight: Tensor,
    scores: Tensor,
    pooled: Tensor,
    context: Tensor,
    patch_size: Sequence[int],
    output_mask: Sequence[bool],
) -> None:
    """Raises ValueError or TypeError where the arguments of ``separable_attn_backward`` break its contract."""
    check_separable_attn(x, qkv_weight, qkv_bias, out_weight, None, patch_size)
    _check_saved("grad_out", grad_out, x.shape, x.dtype, x)
    batch, channels, height, width = x.shape
    ph, pw = patch_size
    _check_saved("scores", scores, (batch, ph * pw, (height // ph) * (width // pw)), torch.float32, x)
    for name, tensor in (("pooled", pooled), ("context", context)):
        _check_saved(name, tensor, (batch, ph * pw, channels), torch.float32, x)


def check_pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError or TypeError where the arguments of ``pointwise_conv2d`` break its contract."""
    check_map(x)
    if weight.dim() < 1 or weight.shape[0] < 1:
        raise ValueError(f"weight: expected at least one row, got {list(weight.shape)}")
    _check_weight("weight", weight, weight.shape[0], x)
    _check_bias("bias", bias, weight.shape[0], x)


def check_pointwise_conv2d_backward(grad_out: Tensor, x: Tensor, weight: Tensor) -> None:
    """Raises ValueError or TypeError where the arguments of ``pointwise_conv2d_backward`` break its contract."""
    check_pointwise_conv2d(x, weight, None)
    _check_saved("grad_out", grad_out, (x.shape[0], weight.shape[0], *x.shape[2:]), x.dtype, x)


def check_depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, dilation: int) -> None:
    """Raises ValueError or TypeError where the arguments of ``depthwise_conv2d`` break its contract."""
    check_map(x)
    channels, height, width = x.shape[1:]
    if tuple(weight.shape) != (channels, 1, 3, 3):
        raise ValueError(f"weight: expected {[channels, 1, 3, 3]}, got {list(weight.shape)}")
    _check_alike("weight", weight, x)
    _check_positive("stride", stride)
    _check_positive("dilation", dilation)
    if height < 1 or width < 1:
        raise ValueError(f"x: expected at least one pixel, got {height} x {width}")


def check_depthwise_conv2d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, stride: int, dilation: int
) -> None:
    """Raises ValueError or TypeError where the arguments of ``depthwise_conv2d_backward`` break its contract."""
    check_depthwise_conv2d(x, weight, stride, dilation)
    sides = ((side - 1) // stride + 1 for side in x.shape[2:])
    _check_saved("grad_out", grad_out, (*x.shape[:2], *sides), x.dtype, x)


def check_batch_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Raises ValueError or TypeError where the arguments of ``batch_norm`` break its contract."""
    _check_normalizable(x, eps)
    _check_norm_vector("weight", weight, x)
    _check_norm_vector("bias", bias, x)


def check_batch_norm_conv2d(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weight: Tensor, eps: float, stride: int, dilation: int
) -> None:
    """Raises ValueError or TypeError where the arguments of ``batch_norm_conv2d`` break its contract."""
    _check_normalizable(x, eps)
    _check_norm_vector("norm_weight", norm_weight, x)
    _check_norm_vector("norm_bias", norm_bias, x)
    channels, sizes = x.shape[1], tuple(weight.shape)
    pointwise = len(sizes) == 4 and sizes[0] >= 1 and sizes[1:] == (channels, 1, 1)
    depthwise = sizes == (channels, 1, 3, 3)
    if not (pointwise or depthwise):
        raise ValueError(
            f"weight: expected [O, {channels}, 1, 1] or {[channels, 1, 3, 3]}, got {list(sizes)}"
        )
    _check_alike("weight", weight, x)
    _check_positive("stride", stride)
    _check_positive("dilation", dilation)
    if pointwise and stride != 1:
        raise ValueError(f"stride: expected 1 with a kernel of one pixel, got {stride}")


def check_batch_norm_conv2d_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, mean: Tensor, var: Tensor, stride: int
) -> None:
    """Raises ValueError or TypeError where what ``batch_norm_conv2d`` returned, or its gradient, is not that."""
    sides = ((side - 1) // stride + 1 for side in x.shape[2:])
    _check_saved("grad_out", grad_out, (x.shape[0], weight.shape[0], *sides), x.dtype, x)
    for name, statistic in (("mean", mean), ("var", var)):
        _check_saved(name, statistic, (x.shape[1],), accumulate_dtype(x.dtype), x)


def check_map(x: Tensor) -> None:
    """Raises ValueError or TypeError unless ``x`` is a floating-point map ``[B, C, H, W]`` with a channel."""
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [B, C, H, W], got {x.dim()}")
    check_floating("x", x)
    if x.shape[1] < 1:
        raise ValueError("x: expected at least one channel, got 0")


def check_floating(name: str, x: Tensor) -> None:
    """Raises TypeError unless ``x`` has a floating-point dtype."""
    if not x.is_floating_point():
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value}")


def _check_normalizable(x: Tensor, eps: float) -> None:
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [B, C, H, W], got {x.dim()}")
    check_floating("x", x)
    if x.shape[1] < 1 or x.numel() <= x.shape[1]:
        raise ValueError(f"x: expected more than one value per channel, got {list(x.shape)}")
    if eps < 0:
        raise ValueError(f"eps: expected 0 or more, got {eps}")


def _check_norm_vector(name: str, vector: Tensor, x: Tensor) -> None:
    check_floating(name, vector)
    if vector.dim() != 1 or vector.shape[0] != x.shape[1]:
        raise ValueError(f"{name}: expected [{x.shape[1]}], got {list(vector.shape)}")


def _check_weight(name: str, weight: Tensor, rows: int, x: Tensor) -> None:
    columns = x.shape[1]
    if tuple(weight.shape) not in ((rows, columns), (rows, columns, 1, 1)):
        raise ValueError(
            f"{name}: expected [{rows}, {columns}] or [{rows}, {columns}, 1, 1], got {list(weight.shape)}"
        )
    _check_alike(name, weight, x)


def _check_bias(name: str, bias: Tensor | None, size: int, x: Tensor) -> None:
    if bias is None:
        return
    if tuple(bias.shape) != (size,):
        raise ValueError(f"{name}: expected [{size}], got {list(bias.shape)}")
    _check_alike(name, bias, x)


def _check_saved(name: str, saved: Tensor, shape: Sequence[int], dtype: torch.dtype, x: Tensor) -> None:
    if tuple(saved.shape) != tuple(shape):
        raise ValueError(f"{name}: expected {list(shape)} as the forward returned, got {list(saved.shape)}")
    if saved.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype} as the forward returned, got {saved.dtype}")
    if saved.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as the forward's input has, got {saved.device}")


def _check_alike(name: str, tensor: Tensor, x: Tensor) -> None:
    """Raises TypeError or ValueError unless ``tensor`` has the dtype and the device of ``x``."""
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name}: expected {x.dtype} as x has, got {tensor.dtype}")
    if tensor.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x has, got {tensor.device}")

"""Convolutions and linear layers of the models: in training on the CPU on kernels of this package where they fit."""

import torch
from torch import Tensor, nn

from mobilevit_kernels import _C
from mobilevit_kernels.models.fused_layers import compute_dtype, has_hooks, is_silu, on_cpu_kernels
from mobilevit_kernels.ops import depthwise_conv2d, pointwise_conv2d


def convolve(x: Tensor, conv: nn.Conv2d, act: nn.Module | None = None) -> Tensor:
    """``conv(x)`` or ``conv(act(x))``, in training on the CPU as an op of this package where there is one.

    1x1 convolutions run as :func:`mobilevit_kernels.ops.pointwise_conv2d`, which takes SiLU before them along, 3x3
    depthwise ones as :func:`mobilevit_kernels.ops.depthwise_conv2d`.

    Other kernels, modules with hooks, other devices, evaluation and the backend "reference" take the module itself.

    Args:
        x: ``[B, C, H, W]``.
        conv: the convolution.
        act: the activation before it.
    """
    if _runs_as_pointwise(x, conv):
        return _product(x, conv, act)
    if act is not None:
        x = act(x)
    if _runs_as_depthwise(x, conv):
        return depthwise_conv2d(x, conv.weight, conv.stride[0], conv.dilation[0])
    return conv(x)


def convolve_joined(layer: nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """``layer(torch.cat((first, second), dim=1))``, without that copy where the layer reads two maps.

    Args:
        layer: those of ``optimize_for_inference`` read two maps, and say so in an attribute ``reads_two_maps``.
        first, second: ``[B, C1, H, W]`` and ``[B, C2, H, W]``.
    """
    if getattr(layer, "reads_two_maps", False) and first.dtype == second.dtype and not has_hooks(layer):
        return layer(first, second)
    return layer(torch.cat((first, second), dim=1))


def project(tokens: Tensor, linear: nn.Module, act: nn.Module | None = None) -> Tensor:
    """``linear(tokens)`` or ``linear(act(tokens))``, on the same terms as a 1x1 convolution in :func:`convolve`.

    Args:
        tokens: ``[B, H, W, C]``.
        linear: the linear layer; any other module is called.
        act: the activation before it.
    """
    if _is_product(tokens, linear, nn.Linear):
        assert isinstance(linear, nn.Linear)
        return _product(tokens.permute(0, 3, 1, 2), linear, act).permute(0, 2, 3, 1)
    return linear(tokens if act is None else act(tokens))


def takes_norm(x: Tensor, conv: nn.Conv2d) -> bool:
    """Whether :func:`mobilevit_kernels.ops.batch_norm_conv2d` may stand for a norm of ``x`` and ``conv`` behind it.

    Args:
        x: ``[B, C, H, W]``, what the norm is given, in the dtype of the convolution.
        conv: a convolution without bias.
    """
    if x.dtype != compute_dtype(x) or conv.bias is not None:
        return False
    return _runs_as_depthwise(x, conv) or _runs_as_pointwise(x, conv)


def _runs_as_pointwise(x: Tensor, conv: nn.Conv2d) -> bool:
    return _is_pointwise(conv) and _is_product(x, conv, nn.Conv2d)


def _runs_as_depthwise(x: Tensor, conv: nn.Conv2d) -> bool:
    return x.dim() == 4 and _runs_here(x, conv, nn.Conv2d) and _is_depthwise(conv)


def _is_product(x: Tensor, layer: nn.Module, kind: type[nn.Module]) -> bool:
    return x.dim() == 4 and _runs_here(x, layer, kind) and not _on_matrix_unit(x)


def _product(x: Tensor, layer: nn.Conv2d | nn.Linear, act: nn.Module | None) -> Tensor:
    if act is None:
        return pointwise_conv2d(x, layer.weight, layer.bias)
    if is_silu(act) and not has_hooks(act):
        return pointwise_conv2d(x, layer.weight, layer.bias, silu_input=True)
    return pointwise_conv2d(act(x), layer.weight, layer.bias)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == conv.stride == (1, 1) and conv.padding == (0, 0) and conv.groups == 1


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """3x3, one filter for each channel, padded with as many zeros as the dilation."""
    if conv.kernel_size != (3, 3) or conv.padding != conv.dilation or conv.padding_mode != "zeros":
        return False
    square = conv.stride[0] == conv.stride[1] and conv.dilation[0] == conv.dilation[1]
    return square and conv.groups == conv.in_channels == conv.out_channels and conv.bias is None


def _runs_here(x: Tensor, layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether kernels of this package may stand for a layer: it trains, on the CPU, and nobody watches it."""
    if not layer.training or type(layer) is not kind or has_hooks(layer):
        return False
    return x.is_floating_point() and on_cpu_kernels(x)


def _on_matrix_unit(x: Tensor) -> bool:
    """Whether torch's own products are faster: in 16 bits on a processor with matrix units (AMX)."""
    return compute_dtype(x) in (torch.bfloat16, torch.float16) and _C.has_matrix_unit()

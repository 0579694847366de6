"""The convolutional layers that every generation shares."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models.conv_chain import ConvLayer, run_chain
from mobilevit_kernels.models.convolve import convolve
from mobilevit_kernels.models.fused_layers import has_hooks
from mobilevit_kernels.models.norm_act import norm_act


def make_divisible(value: float, divisor: int = 8, minimum: int | None = None) -> int:
    """Rounds a channel count to a multiple of ``divisor`` without losing more than 10 % of it.

    Args:
        value: wanted number of channels.
        divisor: the result is a multiple of this.
        minimum: smallest result; ``divisor`` by default.

    Returns:
        Number of channels (arXiv 1801.04381, as MobileNet code rounds widths).
    """
    rounded = max(minimum or divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def pad_to_patches(size: int, patch: int) -> int:
    """Returns the smallest multiple of ``patch`` that is at least ``size`` (pixels)."""
    return math.ceil(size / patch) * patch


def resize_to_patches(x: Tensor, patch_size: tuple[int, int], align_corners: bool) -> Tensor:
    """Enlarges a map, bilinearly, until it divides into patches.

    Args:
        x: ``[B, C, H, W]``.
        patch_size: (patch_h, patch_w).
        align_corners: as in :func:`torch.nn.functional.interpolate`; False in v1, True in v2.

    Returns:
        ``[B, C, H', W']`` with H' and W' the next multiples of the patch; ``x`` itself if it divides already.
    """
    height, width = x.shape[2:]
    size = (pad_to_patches(height, patch_size[0]), pad_to_patches(width, patch_size[1]))
    if size == (height, width):
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=align_corners)


class ConvNormAct(nn.Module):
    """Convolution without bias, zero-padded to keep the size at stride 1, then BatchNorm and SiLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: side of the kernel, odd.
        stride: stride of the convolution.
        dilation: dilation of the kernel.
        groups: groups of the convolution; ``in_channels`` makes it depthwise.
        act: False leaves out the activation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels)
        self.act = nn.SiLU(inplace=True) if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` -> ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        return norm_act(convolve(x, self.conv), self.bn, self.act)


def conv_layer(module: nn.Module) -> ConvLayer | None:
    """The parts of a :class:`ConvNormAct`, or None where something else, or somebody's hook, is in its place."""
    if type(module) is not ConvNormAct or has_hooks(module):
        return None
    return ConvLayer(module.conv, module.bn, module.act)


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): drops a residual branch per sample and rescales the others.

    Args:
        drop_prob: probability of dropping, in [0, 1).

    Raises:
        ValueError: ``drop_prob`` is outside [0, 1).
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"drop_prob: expected a probability in [0, 1), got {drop_prob}")
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """``[B, ...]`` -> same shape; ``x`` itself outside training."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.drop_prob
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep_prob)
        return x * mask.div_(keep_prob)

    def extra_repr(self) -> str:
        """Shows the probability in ``print(model)``."""
        return f"drop_prob={self.drop_prob:.3f}"


class InvertedResidual(nn.Module):
    """MobileNetV2 block (arXiv 1801.04381): 1x1 expand, 3x3 depthwise, 1x1 reduce without activation.

    The input is added where the shape allows it: stride 1 and equal channels.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: stride of the depthwise convolution.
        expand_ratio: hidden channels over ``in_channels``, before rounding to a multiple of 8.
        dilation: dilation of the depthwise convolution.
        drop_path: stochastic depth rate.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expand_ratio: float = 4.0,
        dilation: int = 1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        hidden = make_divisible(round(in_channels * expand_ratio))
        self.has_residual = stride == 1 and in_channels == out_channels
        self.conv1_1x1 = ConvNormAct(in_channels, hidden)
        self.conv2_kxk = ConvNormAct(hidden, hidden, 3, stride, dilation, groups=hidden)
        self.conv3_1x1 = ConvNormAct(hidden, out_channels, act=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, in_channels, H, W]`` -> ``[B, out_channels, ceil(H / stride), ceil(W / stride)]``."""
        out = run_chain(x, (self.conv1_1x1, self.conv2_kxk, self.conv3_1x1), conv_layer)
        return x + self.drop_path(out) if self.has_residual else out


def channels_last(x: Tensor) -> Tensor:
    """Returns ``x`` (``[B, C, H, W]``) in channels_last memory; copies only where it is not already."""
    return x.contiguous(memory_format=torch.channels_last)

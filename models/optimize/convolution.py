"""Runs every convolution of ours, timm's and transformers' layers, dense or depthwise, with its SiLU as one op."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.optimize.folding import LAYERS, qualified_name
from mobilevit_kernels.models.optimize.layers import BLOCKS
from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.optimize.predicates import (
    convolution_of,
    is_depthwise,
    is_observed,
    replace_children,
    weight_and_bias,
)
from mobilevit_kernels.ops.convolution import convolution
from mobilevit_kernels.ops.depthwise_convolution import depthwise_convolution
from mobilevit_kernels.ops.packing import (
    pack_convolution,
    pack_depthwise_convolution,
    pack_winograd_convolution,
)
from mobilevit_kernels.ops.winograd_convolution import winograd_convolution

# With fewer channels the transforms take longer than the products that they save.
MIN_WINOGRAD_CHANNELS = 32


class _Sizes(NamedTuple):
    out_channels: int
    kernel_size: int
    stride: int
    padding: int
    dilation: int
    silu: bool


class FusedConvolution(PackedOp):
    """Convolution and SiLU as one op (:func:`mobilevit_kernels.ops.convolution`).

    Args:
        conv: a dense convolution with a square kernel, the norm after it folded into it.
        silu: activates the result.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    sizes: _Sizes
    reads_two_maps = True

    def __init__(self, conv: nn.Conv2d, silu: bool, dtype: torch.dtype = torch.float32) -> None:
        sides = (conv.kernel_size[0], conv.stride[0], int(conv.padding[0]), conv.dilation[0])
        packed = pack_convolution(*weight_and_bias(conv), dtype=dtype)
        super().__init__(packed, _Sizes(conv.out_channels, *sides, silu))
        self.out_dtype: torch.dtype | None = None  # of every output; None: that of the input

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """``[B, C, H, W]``, its last channels perhaps in a map ``beside`` -> ``[B, C_out, H', W']``."""
        return convolution(x, self.packed, *self.sizes, beside=beside, out_dtype=self.out_dtype)


class _WinogradSizes(NamedTuple):
    out_channels: int
    silu: bool


class FusedWinogradConvolution(PackedOp):
    """3x3 convolution and SiLU as one op in float32 (:func:`mobilevit_kernels.ops.winograd_convolution`).

    Args:
        conv: a dense convolution of stride 1 and padding 1, the norm after it folded into it.
        silu: activates the result.
    """

    sizes: _WinogradSizes
    reads_two_maps = True

    def __init__(self, conv: nn.Conv2d, silu: bool) -> None:
        packed = pack_winograd_convolution(*weight_and_bias(conv))
        super().__init__(packed, _WinogradSizes(conv.out_channels, silu))

    def forward(self, x: Tensor, beside: Tensor | None = None) -> Tensor:
        """``[B, C, H, W]``, its last channels perhaps in a map ``beside`` -> ``[B, C_out, H, W]``."""
        return winograd_convolution(x, self.packed, *self.sizes, beside=beside)


class _DepthwiseSizes(NamedTuple):
    stride: int
    dilation: int
    silu: bool


class FusedDepthwiseConvolution(PackedOp):
    """Depthwise convolution and SiLU as one op (:func:`mobilevit_kernels.ops.depthwise_convolution`).

    Args:
        conv: a 3x3 depthwise convolution, the norm after it folded into it.
        silu: activates the result.
    """

    def __init__(self, conv: nn.Conv2d, silu: bool) -> None:
        packed = pack_depthwise_convolution(*weight_and_bias(conv))
        super().__init__(packed, _DepthwiseSizes(conv.stride[0], conv.dilation[0], silu))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C, ceil(H / stride), ceil(W / stride)]``."""
        return depthwise_convolution(x, self.packed, *self.sizes)


def fuse_convolutions(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replaces every layer of a convolution and a SiLU, and a MobileViT block's bare ones, by one op, in place.

    A layer with a norm that is not folded, another activation, groups of several channels, a kernel that is not square,
    or hooks stays.

    Args:
        model: in evaluation mode, BatchNorms folded.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        How many were replaced.
    """
    return replace_children(
        model, lambda parent, layer: fuse(layer, dtype, bare=qualified_name(parent) in BLOCKS)
    )


def fuse(
    layer: nn.Module, dtype: torch.dtype = torch.float32, bare: bool = False
) -> FusedConvolution | FusedWinogradConvolution | FusedDepthwiseConvolution | None:
    """One module that computes what ``layer`` computes, or None.

    Args:
        layer: any module.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
        bare: takes a convolution without a layer around it too, whose parameters nobody else may read.
    """
    known = qualified_name(layer) in LAYERS or (bare and type(layer) is nn.Conv2d)
    if not known or any(is_observed(module) for module in layer.modules()):
        return None
    found = convolution_of(layer)
    if found is None:
        return None
    if is_depthwise(found[0]):
        return FusedDepthwiseConvolution(*found)
    if not _is_dense_and_square(found[0]):
        return None
    if dtype == torch.float32 and _takes_minimal_filtering(found[0]):
        return FusedWinogradConvolution(*found)
    return FusedConvolution(*found, dtype)


def _takes_minimal_filtering(conv: nn.Conv2d) -> bool:
    sides = (conv.kernel_size[0], conv.stride[0], conv.padding[0], conv.dilation[0])
    return sides == (3, 1, 1, 1) and min(conv.in_channels, conv.out_channels) >= MIN_WINOGRAD_CHANNELS


def _is_dense_and_square(conv: nn.Conv2d) -> bool:
    sides = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    square = all(isinstance(pair, tuple) and pair[0] == pair[1] for pair in sides)
    return square and conv.groups == 1 and conv.padding_mode == "zeros"

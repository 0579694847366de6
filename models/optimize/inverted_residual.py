"""Finds inverted residual blocks, ours and those of timm and transformers, and runs each as one op."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.optimize.folding import qualified_name
from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.optimize.predicates import (
    convolution_of,
    does_nothing,
    is_depthwise,
    is_observed,
    leaves,
    replace_children,
    weight_and_bias,
)
from mobilevit_kernels.ops.inverted_residual import inverted_residual
from mobilevit_kernels.ops.packing import pack_inverted_residual


class _Sizes(NamedTuple):
    hidden_dim: int
    out_channels: int
    stride: int
    dilation: int
    residual: bool


class FusedInvertedResidual(PackedOp):
    """Inverted residual block as one op (:func:`mobilevit_kernels.ops.inverted_residual`).

    Args:
        expand, depthwise, project: the convolutions, the norms folded into them.
        residual: adds the input.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """

    def __init__(
        self,
        expand: nn.Conv2d,
        depthwise: nn.Conv2d,
        project: nn.Conv2d,
        residual: bool,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        first, second, third = (weight_and_bias(conv) for conv in (expand, depthwise, project))
        packed = pack_inverted_residual(*first, *second, *third, dtype=dtype)
        channels = (expand.out_channels, project.out_channels)
        super().__init__(packed, _Sizes(*channels, depthwise.stride[0], depthwise.dilation[0], residual))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` -> ``[B, C_out, ceil(H / stride), ceil(W / stride)]``."""
        return inverted_residual(x, self.packed, *self.sizes)


class _Names(NamedTuple):
    """Where the layers of a block are, and whether it adds its input; None: it adds something else."""

    expand: str
    depthwise: str
    project: str
    residual: Callable[[Any], bool | None]


def _timm_residual(block: Any) -> bool | None:
    if block.shortcut is None:
        return False
    return True if type(block.shortcut) is nn.Identity else None


_TIMM = _Names("conv1_1x1", "conv2_kxk", "conv3_1x1", _timm_residual)
_HF = _Names("expand_1x1", "conv_3x3", "reduce_1x1", lambda block: block.use_residual)
_ACCELERATE = "mobilevit_kernels.models.accelerate"
_BLOCKS = {
    "mobilevit_kernels.models.layers.InvertedResidual": _Names(
        "conv1_1x1", "conv2_kxk", "conv3_1x1", lambda block: block.has_residual
    ),
    "timm.models.byobnet.BottleneckBlock": _TIMM,
    f"{_ACCELERATE}.timm_layers.AcceleratedBottleneckBlock": _TIMM,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTInvertedResidual": _HF,
    "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2InvertedResidual": _HF,
    f"{_ACCELERATE}.huggingface_layers.AcceleratedMobileViTInvertedResidual": _HF,
    f"{_ACCELERATE}.huggingface_layers.AcceleratedMobileViTV2InvertedResidual": _HF,
}


def fuse_inverted_residuals(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replaces every inverted residual block by one op, in place.

    A block with a norm that is not folded, another activation, another kernel, hooks or replaced layers stays as it is.

    Args:
        model: in evaluation mode, BatchNorms folded.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        How many were replaced.
    """
    return replace_children(model, lambda _, block: fuse(block, dtype))


def fuse(block: nn.Module, dtype: torch.dtype = torch.float32) -> FusedInvertedResidual | None:
    """One module that computes what ``block`` computes, or None.

    Args:
        block: any module.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """
    names = _BLOCKS.get(qualified_name(block))
    if names is None or any(is_observed(module) for module in block.modules()):
        return None
    layers = [block.get_submodule(name) for name in (names.expand, names.depthwise, names.project)]
    found = [convolution_of(layer) for layer in layers]
    residual = names.residual(block)
    if any(part is None for part in found) or residual is None:
        return None
    (expand, first), (depthwise, second), (project, third) = cast("list[tuple[nn.Conv2d, bool]]", found)
    if (first, second, third) != (True, True, False):
        return None
    inside = {module for layer in layers for module in layer.modules()}
    if any(module not in inside and not does_nothing(module) for module in leaves(block)):
        return None
    if not (_is_pointwise(expand) and _is_pointwise(project) and is_depthwise(depthwise)):
        return None
    return FusedInvertedResidual(expand, depthwise, project, residual, dtype)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    sizes = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return sizes == ((1, 1), (1, 1), (0, 0), 1)

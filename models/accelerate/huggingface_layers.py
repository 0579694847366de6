"""transformers' convolutional layers on the kernels that this package has for training on the CPU."""

from typing import Any

from torch import Tensor, fx, nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTConvLayer, MobileViTInvertedResidual
from transformers.models.mobilevitv2.modeling_mobilevitv2 import (
    MobileViTV2ConvLayer,
    MobileViTV2InvertedResidual,
)

from mobilevit_kernels.models.conv_chain import ConvLayer, run_chain
from mobilevit_kernels.models.convolve import convolve
from mobilevit_kernels.models.fused_layers import has_hooks

_NOTHING = nn.Identity()


class AcceleratedMobileViTConvLayer(MobileViTConvLayer):
    """``MobileViTConvLayer``: in training on the CPU the convolution is one op, norm and activation another."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what transformers' layer returns."""
        return super().forward(features) if isinstance(features, fx.Proxy) else _run(self, features)


class AcceleratedMobileViTV2ConvLayer(MobileViTV2ConvLayer):
    """``MobileViTV2ConvLayer``: in training on the CPU the convolution is one op, norm and activation another."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what transformers' layer returns."""
        return super().forward(features) if isinstance(features, fx.Proxy) else _run(self, features)


class AcceleratedMobileViTInvertedResidual(MobileViTInvertedResidual):
    """``MobileViTInvertedResidual``: in training on the CPU norms run inside the convolutions behind them."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what transformers' block returns."""
        return super().forward(features) if isinstance(features, fx.Proxy) else _run_block(self, features)


class AcceleratedMobileViTV2InvertedResidual(MobileViTV2InvertedResidual):
    """``MobileViTV2InvertedResidual``: in training on the CPU norms run inside the convolutions behind them."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what transformers' block returns."""
        return super().forward(features) if isinstance(features, fx.Proxy) else _run_block(self, features)


# transformers' class -> ours.
LAYERS = {
    MobileViTConvLayer: AcceleratedMobileViTConvLayer,
    MobileViTInvertedResidual: AcceleratedMobileViTInvertedResidual,
    MobileViTV2ConvLayer: AcceleratedMobileViTV2ConvLayer,
    MobileViTV2InvertedResidual: AcceleratedMobileViTV2InvertedResidual,
}


def _run(layer: Any, x: Tensor) -> Tensor:
    return _parts(layer).finish(convolve(x, layer.convolution))


def _parts(layer: Any) -> ConvLayer:
    return ConvLayer(layer.convolution, layer.normalization, layer.activation or _NOTHING)


def _run_block(block: Any, x: Tensor) -> Tensor:
    out = run_chain(x, (block.expand_1x1, block.conv_3x3, block.reduce_1x1), conv_layer)
    return x + out if block.use_residual else out


def conv_layer(module: nn.Module) -> ConvLayer | None:
    """The parts of an accelerated layer, or None where something else, or somebody's hook, is there."""
    accelerated = (AcceleratedMobileViTConvLayer, AcceleratedMobileViTV2ConvLayer)
    return _parts(module) if type(module) in accelerated and not has_hooks(module) else None

"""transformers' convolutional layers on the kernels that this package has for training on the CPU."""

from typing import Any

from torch import Tensor, fx, nn
from transformers.models.mobilevit.modeling_mobilevit import MobileViTConvLayer
from transformers.models.mobilevitv2.modeling_mobilevitv2 import MobileViTV2ConvLayer

from mobilevit_kernels.models.convolve import convolve
from mobilevit_kernels.models.norm_act import norm_act

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


# transformers' class -> ours.
LAYERS = {
    MobileViTConvLayer: AcceleratedMobileViTConvLayer,
    MobileViTV2ConvLayer: AcceleratedMobileViTV2ConvLayer,
}


def _run(layer: Any, x: Tensor) -> Tensor:
    x, act = convolve(x, layer.convolution), layer.activation or _NOTHING
    return act(x) if layer.normalization is None else norm_act(x, layer.normalization, act)

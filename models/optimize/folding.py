"""Folds BatchNorm into the convolution before it, in the layers of this package, timm and transformers."""

from typing import cast

from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_PATHS = "mobilevit_kernels.models"
_TIMM, _HF = ("conv", "bn"), ("convolution", "normalization")
# Layers in which a convolution is followed by a BatchNorm: (convolution, norm) by class.
LAYERS = {
    f"{_PATHS}.layers.ConvNormAct": _TIMM,
    "timm.layers.conv_bn_act.ConvNormAct": _TIMM,
    f"{_PATHS}.accelerate.timm_layers.AcceleratedConvNormAct": _TIMM,
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTConvLayer": _HF,
    "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2ConvLayer": _HF,
    f"{_PATHS}.accelerate.huggingface_layers.AcceleratedMobileViTConvLayer": _HF,
    f"{_PATHS}.accelerate.huggingface_layers.AcceleratedMobileViTV2ConvLayer": _HF,
}


def qualified_name(module: nn.Module) -> str:
    """Module and name of a module's class."""
    return f"{type(module).__module__}.{type(module).__qualname__}"


def fold_batch_norms(model: nn.Module) -> None:
    """Makes every BatchNorm that follows a convolution a part of it, in place; evaluation mode only.

    Args:
        model: any module; layers of other classes stay as they are.
    """
    for layer in list(model.modules()):
        names = LAYERS.get(qualified_name(layer))
        if names is None:
            continue
        convolution, norm = (getattr(layer, name) for name in names)
        if type(convolution) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            _fold(norm, convolution)
            setattr(layer, names[1], _what_remains(norm))


def _fold(norm: nn.BatchNorm2d, convolution: nn.Conv2d) -> None:
    """Gives the convolution parameters of its own, folded in float64: those that it has may be another model's."""
    bias = None if convolution.bias is None else _wide(convolution.bias)
    mean, variance = _wide(norm.running_mean), _wide(norm.running_var)
    scale = None if norm.weight is None else _wide(norm.weight)
    shift = None if norm.bias is None else _wide(norm.bias)
    folded = fuse_conv_bn_weights(_wide(convolution.weight), bias, mean, variance, norm.eps, scale, shift)
    convolution.weight, convolution.bias = (nn.Parameter(part.detach().float(), False) for part in folded)


def _wide(values: Tensor | None) -> Tensor:
    return cast("Tensor", values).detach().double()


def _what_remains(norm: nn.Module) -> nn.Module:
    """timm's norms bring the dropout and the activation after them."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()

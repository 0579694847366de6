"""Folds BatchNorm into the convolution before it, in the layers of this package, timm and transformers."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Layers in which a convolution is followed by a BatchNorm: (convolution, norm) by class.
LAYERS = {
    "mobilevit_kernels.models.layers.ConvNormAct": ("conv", "bn"),
    "timm.layers.conv_bn_act.ConvNormAct": ("conv", "bn"),
    "transformers.models.mobilevit.modeling_mobilevit.MobileViTConvLayer": ("convolution", "normalization"),
    "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2ConvLayer": (
        "convolution",
        "normalization",
    ),
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
            setattr(layer, names[0], fuse_conv_bn_eval(convolution, norm))
            setattr(layer, names[1], _what_remains(norm))


def _what_remains(norm: nn.Module) -> nn.Module:
    """timm's norms bring the dropout and the activation after them."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts) if parts else nn.Identity()

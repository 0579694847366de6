"""What the searches for layers to fuse ask of a module in evaluation mode, and how they replace it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mobilevit_kernels.models.fused_layers import is_silu

_DOES_NOTHING = ("Identity", "Dropout", "DropPath", "AcceleratedDropPath")


def does_nothing(module: nn.Module) -> bool:
    """Whether a module returns its input."""
    return type(module).__name__ in _DOES_NOTHING


def is_observed(module: nn.Module) -> bool:
    """Whether somebody watches or replaces the module's own forward pass: it has to keep running."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)


def leaves(module: nn.Module) -> list[nn.Module]:
    """The modules inside, or the module itself, that have no parts."""
    return [part for part in module.modules() if next(part.children(), None) is None]


def convolution_of(layer: nn.Module) -> tuple[nn.Conv2d, bool] | None:
    """The convolution of a layer that has nothing else but at most one SiLU after it, and whether it has that."""
    parts = [part for part in leaves(layer) if not does_nothing(part)]
    activated = len(parts) == 2 and is_silu(parts[1])
    if not parts or type(parts[0]) is not nn.Conv2d or len(parts) != 1 + activated:
        return None
    return parts[0], activated


def weight_and_bias(layer: Any) -> tuple[Tensor, Tensor]:
    """The parameters of a convolution, linear layer or norm; zeros for a bias that is not there."""
    bias = layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias
    return layer.weight, bias


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3, one channel at a time, padded as wide as its dilation, alike on both axes."""
    square = conv.stride[0] == conv.stride[1] and conv.dilation[0] == conv.dilation[1]
    padded = conv.padding == conv.dilation and conv.padding_mode == "zeros"
    grouped = conv.groups == conv.in_channels == conv.out_channels
    return conv.kernel_size == (3, 3) and square and padded and grouped


def replace_children(
    model: nn.Module, replacement_of: Callable[[nn.Module, nn.Module], nn.Module | None]
) -> int:
    """Replaces modules in place, and returns how many.

    Args:
        model: the modules inside it are visited, itself is not.
        replacement_of: takes a parent and one of its children, and returns what takes the child's place, or None.
    """
    replaced = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            replacement = replacement_of(parent, child)
            if replacement is not None:
                setattr(parent, name, replacement)
                replaced += 1
    return replaced

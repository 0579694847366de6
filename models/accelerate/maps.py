"""What the replaced blocks of timm and transformers share."""

from collections.abc import Callable

from torch import Tensor, nn

from mobilevit_kernels import reference
from mobilevit_kernels.models.accelerate.replacement import dropout_acts
from mobilevit_kernels.models.fused_layers import has_hooks


def on_unfolded(attention: Callable[[Tensor], Tensor], x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Runs a layer that takes the unfolded layout ``[B, C, P, N]`` on a map ``[B, C, H, W]`` of whole patches."""
    return reference.fold(attention(reference.unfold(x, patch_size)), (x.shape[2], x.shape[3]), patch_size)


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling ``module`` does what ``cls`` does with its weight and bias, and nothing else.

    False where something must see the call: a wrapper (low-rank adapters, quantisation, a parametrisation), a hook,
    or a forward set on the instance.
    """
    return type(module) is cls and not has_hooks(module)


def check_no_dropout(attention: nn.Module, dropout: nn.Module) -> None:
    """Raises RuntimeError in training with attention dropout, which the ops do not have."""
    if dropout_acts(attention, dropout):
        raise RuntimeError(
            f"{type(attention).__name__}: attention dropout is not supported in training, got p={dropout.p}; "
            "set p to 0 or call eval()"
        )

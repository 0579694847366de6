"""What the replaced blocks of timm and transformers share."""

from collections.abc import Callable

from torch import Tensor, nn

from mobilevit_kernels import reference
from mobilevit_kernels.models.accelerate.replacement import dropout_acts


def on_unfolded(attention: Callable[[Tensor], Tensor], x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Runs a layer that takes the unfolded layout ``[B, C, P, N]`` on a map ``[B, C, H, W]`` of whole patches."""
    return reference.fold(attention(reference.unfold(x, patch_size)), (x.shape[2], x.shape[3]), patch_size)


def is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """Whether calling ``module`` does what ``cls`` does with its weight and bias, and nothing else.

    False where something must see the call: a wrapper (low-rank adapters, quantisation, a parametrisation), a hook,
    or a forward set on the instance.
    """
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return type(module) is cls and "forward" not in module.__dict__ and not any(len(hook) for hook in hooks)


def check_no_dropout(attention: nn.Module, dropout: nn.Module) -> None:
    """Raises RuntimeError in training with attention dropout, which the ops do not have."""
    if dropout_acts(attention, dropout):
        raise RuntimeError(
            f"{type(attention).__name__}: attention dropout is not supported in training, got p={dropout.p}; "
            "set p to 0 or call eval()"
        )

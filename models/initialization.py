"""Initial weights of a fresh model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function_unary


def _draw_linear(weight: Tensor) -> Tensor:
    """Truncated normal, which torch's own does not let a mode leave out."""
    if has_torch_function_unary(weight):
        return handle_torch_function(_draw_linear, (weight,), weight)
    return nn.init.trunc_normal_(weight, std=0.02)


_DRAWS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, _draw_linear)


class NoRandomWeights(TorchFunctionMode):
    """Context in which weights that would be drawn stay without values: for a model whose weights are loaded next."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Returns the tensor as it is for a draw, and calls any other function."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def init_weights(module: nn.Module) -> None:
    """Initializes one module in place; use as ``model.apply(init_weights)``.

    Convolutions: He normal over the fan-out of a group (arXiv 1502.01852). Linear layers: truncated normal with
    standard deviation 0.02. Scales of norms 1; every bias and shift 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        _draw_linear(module.weight)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)

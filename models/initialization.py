"""Initial weights of a fresh model."""

import math

from torch import nn


def init_weights(module: nn.Module) -> None:
    """Initializes one module in place; use as ``model.apply(init_weights)``.

    Convolutions: He normal over the fan-out of a group (arXiv 1502.01852). Linear layers: truncated normal with
    standard deviation 0.02. Scales of norms 1; every bias and shift 0.
    """
    if isinstance(module, nn.Conv2d):
        fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)

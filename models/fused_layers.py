"""Whether a transformer layer runs as one op, and its parameters in the op's order."""

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from mobilevit_kernels.backends import current_backend, select_backend

# Above this batch the layers are bound by arithmetic and memory, not by the number of kernels that are started.
MAX_BATCH = 8
# Above this width the kernels, which hold whole rows, exceed the registers of a processor.
MAX_CHANNELS = 320
# Of two norms, two projections of the attention, two layers of the feed-forward network: weight and bias of each.
LayerParameters: TypeAlias = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]
HALF = (torch.float16, torch.bfloat16)


def runs_fused(op: str, x: Tensor, layer: nn.Module, parts: dict[str, type[nn.Module]]) -> bool:
    """Whether ``layer`` may run as one op on ``x``: inference in 16 bits on the Triton kernels, at a small batch and
    a width that they hold.

    Args:
        op: the attention op inside the layer.
        x: ``[B, ...]``, the layer's input.
        layer: with every submodule in evaluation mode, or it does not run as one op.
        parts: submodules by name that the op stands for. Each must be exactly of its type and free of hooks:
            a replaced or observed layer keeps running by itself.
    """
    if torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False  # an exported program has one graph for every batch
    if compute_dtype(x) not in HALF or select_backend(op, x) != "triton":
        return False
    if (
        x.shape[0] > MAX_BATCH
        or _width(layer) > MAX_CHANNELS
        or any(part.training for part in layer.modules())
    ):
        return False
    return all(is_plain(layer.get_submodule(name), kind) for name, kind in parts.items())


def parameters_of(layer: nn.Module, names: tuple[str, ...]) -> LayerParameters:
    """Weight and bias of each of six named submodules, in order."""
    modules = [layer.get_submodule(name) for name in names]
    return cast(
        "LayerParameters",
        tuple(parameter for module in modules for parameter in (module.weight, module.bias)),
    )


def _width(layer: nn.Module) -> int:
    return layer.get_submodule("norm1").weight.shape[0]  # type: ignore[index, return-value]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Of products with ``x``: the dtype of autocast, or its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def on_cpu_kernels(x: Tensor) -> bool:
    """Whether the CPU kernels that only training has may run on ``x``: it is there, and nobody chose other code."""
    return x.device.type == "cpu" and current_backend() in ("auto", "native")


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module is exactly of a type, without hooks and not without a bias: an op can stand for it."""
    return type(module) is kind and not has_hooks(module) and getattr(module, "bias", True) is not None


def is_silu(module: nn.Module) -> bool:
    """Whether a module is x * sigmoid(x): PyTorch's, or the one that transformers has of its own."""
    return type(module) is nn.SiLU or type(module).__name__ == "SiLUActivation"


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches or changes what goes into a module, comes out of it, or their gradients.

    A forward set on the instance does, as device placement and offloading set it.
    """
    return "forward" in module.__dict__ or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )

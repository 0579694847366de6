"""What both ops share in their registration with torch.library."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("mobilevit", "IMPL")
AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def as_pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Expands a patch size given as one int; a pair stays as it is."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return height, width


def channels_last_empty(like: Tensor, channels: int) -> Tensor:
    """The output every op promises: ``[B, channels, H, W]`` in channels_last memory."""
    shape = (like.shape[0], channels, like.shape[2], like.shape[3])
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of sums and softmax statistics: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def register_autograd(op: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Runs ``function`` in place of ``op`` where a gradient is wanted, and ``op`` itself where none is."""

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    LIBRARY.impl(op._schema.name.split("::")[1], kernel, "Autograd")


def forbid_double_backward(backward_op: torch._ops.OpOverload) -> None:
    """Makes differentiating through a backward op an error that names it."""
    name = backward_op._schema.name

    class NoDoubleBackward(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            return backward_op(*args)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            raise RuntimeError(
                f"{name}: double backward is not implemented; "
                'mobilevit_kernels.use_backend("reference") is differentiable to any order'
            )

    register_autograd(backward_op, NoDoubleBackward)


def register_autocast(op: torch._ops.OpOverload) -> None:
    """Casts floating-point tensors to the autocast dtype, as torch does for matrix products and attention."""

    def kernel_for(device: str) -> Callable[..., Tensor]:
        def kernel(*args: Any) -> Tensor:
            dtype = torch.get_autocast_dtype(device)
            cast = [_autocast(arg, device, dtype) for arg in args]
            with torch.autocast(device, enabled=False):
                return op(*cast)

        return kernel

    for device, key in AUTOCAST_DEVICES.items():
        LIBRARY.impl(op._schema.name.split("::")[1], kernel_for(device), key)


def _autocast(arg: Any, device: str, dtype: torch.dtype) -> Any:
    eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device
    return arg.to(dtype) if eligible and arg.dtype != torch.float64 else arg

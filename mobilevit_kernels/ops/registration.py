"""What both ops share in their registration with torch.library."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("mobilevit", "IMPL")
AUTOCAST_DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def as_pair(patch_size: int | Sequence[int]) -> tuple[int, int]:
    """Expands a patch size given as one int; a pair stays as it is.

    Raises:
        TypeError: neither an int nor a sequence of ints.
        ValueError: a sequence of another length than two.
    """
    if isinstance(patch_size, int):
        return patch_size, patch_size
    if not isinstance(patch_size, (list, tuple)) or not all(isinstance(side, int) for side in patch_size):
        raise TypeError(f"patch_size: expected an int or two ints, got {patch_size!r}")
    if len(patch_size) != 2:
        raise ValueError(f"patch_size: expected two positive ints, got {list(patch_size)}")
    return patch_size[0], patch_size[1]


def channels_last_empty(
    like: Tensor, channels: int, size: tuple[int, int] | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """The output every op promises: ``[B, channels, H, W]`` in channels_last memory.

    Args:
        like: a map with B, and where nothing else is said, H, W, dtype and device.
        channels: of the output.
        size: another H and W.
        dtype: another dtype.
    """
    height, width = size or (like.shape[2], like.shape[3])
    shape = (like.shape[0], channels, height, width)
    dtype = dtype or like.dtype
    return torch.empty(shape, dtype=dtype, device=like.device, memory_format=torch.channels_last)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of sums and softmax statistics: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def register_autograd(op: torch._ops.OpOverload, function: type[torch.autograd.Function]) -> None:
    """Runs ``function`` in place of ``op`` where a gradient is wanted, and ``op`` itself where none is."""

    def kernel(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            return function.apply(*args)
        if forward_ad._current_level >= 0:
            # torch reports that forward-mode differentiation is not implemented where an input has a tangent.
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


def autocast_arguments(device: str, args: Sequence[Any]) -> list[Any]:
    """The arguments with floating-point tensors in the autocast dtype; float64 and other devices' tensors stay."""
    dtype = torch.get_autocast_dtype(device)

    def cast(arg: Any) -> Any:
        eligible = isinstance(arg, Tensor) and arg.is_floating_point() and arg.device.type == device
        return arg.to(dtype) if eligible and arg.dtype != torch.float64 else arg

    return [cast(arg) for arg in args]


def register_autocast(op: torch._ops.OpOverload) -> None:
    """Casts floating-point tensors to the autocast dtype, as torch does for matrix products and attention."""

    def kernel_for(device: str) -> Callable[..., Tensor]:
        def kernel(*args: Any) -> Tensor:
            with torch.autocast(device, enabled=False):
                return op(*autocast_arguments(device, args))

        return kernel

    for device, key in AUTOCAST_DEVICES.items():
        LIBRARY.impl(op._schema.name.split("::")[1], kernel_for(device), key)


def call_reference(
    reference: Callable[..., Tensor], check: Callable[..., None], x: Tensor, *args: Any
) -> Tensor:
    """Checks the arguments and runs the plain PyTorch definition under the op's own rules for autocast."""
    device = x.device.type
    if device not in AUTOCAST_DEVICES or not torch.is_autocast_enabled(device):
        check(x, *args)
        return reference(x, *args)
    cast = autocast_arguments(device, (x, *args))
    check(*cast)
    with torch.autocast(device, enabled=False):
        return reference(*cast)

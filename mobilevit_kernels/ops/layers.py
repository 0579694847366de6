"""What the ops of whole layers share: they are for inference, and take parameters of another dtype than the map."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_floating, check_patch_grid
from mobilevit_kernels.ops.registration import AUTOCAST_DEVICES, LIBRARY, channels_last_empty
from mobilevit_kernels.ops.triton import register_triton


def check_layer(
    x: Tensor, norms: Sequence[tuple[str, Tensor]], layers: Sequence[tuple[str, Tensor, Tensor, int, int]],
    patch_size: Sequence[int],
) -> None:  # fmt: skip
    """Raises ValueError or TypeError where the arguments of a layer break its contract.

    Args:
        x: the map.
        norms: (name, vector of C) of every parameter of a norm.
        layers: (name, weight, bias, rows, columns) of every linear layer.
        patch_size: (patch_h, patch_w).
    """
    check_patch_grid("x", x, patch_size)
    check_floating("x", x)
    for name, vector in norms:
        _check(name, vector, (x.shape[1],), x)
    for name, weight, bias, rows, columns in layers:
        _check(
            f"{name}_weight", weight.flatten(1) if weight.shape[2:] == (1, 1) else weight, (rows, columns), x
        )
        _check(f"{name}_bias", bias, (rows,), x)


def _check(name: str, parameter: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tuple(parameter.shape) != shape:
        raise ValueError(f"{name}: expected {list(shape)}, got {list(parameter.shape)}")
    check_floating(name, parameter)
    if parameter.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} as x has, got {parameter.device}")


def register_layer(name: str, check: Callable[..., None], reference: Callable[..., Tensor]) -> None:
    """Registers what an op of a whole layer needs beside csrc/inference.cpp: fake, CPU and Triton kernels, autocast.

    Args:
        name: of the op.
        check: raises where its arguments break its contract.
        reference: its plain PyTorch definition, which runs where Triton does not.
    """
    op = getattr(torch.ops.mobilevit, name).default

    def fake(x: Tensor, *args: Any) -> Tensor:
        check(x, *args)
        return channels_last_empty(x, x.shape[1])

    def plain(x: Tensor, *args: Any) -> Tensor:
        check(x, *args)
        return reference(x, *(arg.to(x.dtype) if isinstance(arg, Tensor) else arg for arg in args))

    torch.library.register_fake(f"mobilevit::{name}", fake)
    LIBRARY.impl(name, plain, "CPU")
    register_triton(name, name, check)
    for device, key in AUTOCAST_DEVICES.items():
        LIBRARY.impl(name, _autocast(op, device), key)


def _autocast(op: torch._ops.OpOverload, device: str) -> Callable[..., Tensor]:
    """Casts the map alone: kernels convert parameters as they read them."""

    def kernel(x: Tensor, *args: Any) -> Tensor:
        with torch.autocast(device, enabled=False):
            wide = x.dtype == torch.float64 or x.device.type != device
            return op(x if wide else x.to(torch.get_autocast_dtype(device)), *args)

    return kernel

"""What the ops on packed parameters share in their registration: inference on the CPU only."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.ops.registration import AUTOCAST_DEVICES, LIBRARY

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_storage_dtypes(x: Tensor, packed: Tensor) -> None:
    """Raises TypeError for a dtype that maps or packed parameters do not have; csrc/checks.h says the same."""
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    if packed.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"packed: expected torch.float32 or torch.bfloat16, got {packed.dtype}")


def check_packed_map(x: Tensor, packed: Tensor, size: int, meaning: str, **positive: int) -> None:
    """Raises where a map, its packed parameters or a size break the contract of a convolutional op.

    Args:
        x: the map.
        packed: the parameters.
        size: elements that ``packed`` should have.
        meaning: of these elements.
        positive: arguments that have to be 1 or more.

    Raises:
        ValueError: not four dimensions, an argument below 1, ``packed`` of another size.
        TypeError: another dtype.
    """
    if x.dim() != 4:
        raise ValueError(f"x: expected 4 dimensions [B, C, H, W], got {x.dim()}")
    check_storage_dtypes(x, packed)
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name}: expected a positive int, got {value}")
    if packed.dim() != 1 or packed.shape[0] != size:
        raise ValueError(f"packed: expected {size} elements for {meaning}, got {list(packed.shape)}")


def channels_with(x: Tensor, beside: Tensor | None) -> int:
    """Channels of ``x`` and of the map whose channels follow them; checks that map against ``x``.

    Raises:
        ValueError: ``beside`` with other dimensions, batch, height, width or device than ``x``.
        TypeError: ``beside`` of another dtype.
    """
    if x.dim() != 4:
        return 0
    if beside is None:
        return x.shape[1]
    if beside.dim() != 4:
        raise ValueError(f"beside: expected 4 dimensions [B, C, H, W], got {beside.dim()}")
    if beside.dtype != x.dtype:
        raise TypeError(f"beside: expected {x.dtype} as x has, got {beside.dtype}")
    if beside.device != x.device:
        raise ValueError(f"beside: expected device {x.device} as x has, got {beside.device}")
    (batch, _, height, width), other = x.shape, beside.shape
    if (other[0], *other[2:]) != (batch, height, width):
        raise ValueError(
            f"beside: expected batch, height and width of x, {batch}, {height} and {width}, got {other[0]}, "
            f"{other[2]} and {other[3]}"
        )
    return x.shape[1] + other[1]


def register_inference_op(name: str, fake: Callable[..., Tensor], maps: tuple[int, ...] = (0,)) -> None:
    """Registers what such an op needs beside its CPU kernel and csrc/inference.cpp.

    Args:
        name: of the op.
        fake: checks the arguments and returns an output without data.
        maps: positions of the arguments that are maps, or None: autocast casts them.
    """
    op = getattr(torch.ops.mobilevit, name).default

    def autocast(x: Tensor, *args: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return op(*(_autocast(arg) if i in maps else arg for i, arg in enumerate((x, *args))))

    torch.library.register_fake(f"mobilevit::{name}", fake)
    LIBRARY.impl(name, autocast, AUTOCAST_DEVICES["cpu"])


def _autocast(x: Tensor | None) -> Tensor | None:
    return x.to(torch.get_autocast_dtype("cpu")) if x is not None and x.dtype in DTYPES else x

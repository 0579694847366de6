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


def register_inference_op(name: str, fake: Callable[..., Tensor]) -> None:
    """Registers what such an op needs beside its CPU kernel and csrc/inference.cpp: its first argument is the map.

    Args:
        name: of the op.
        fake: checks the arguments and returns an output without data.
    """
    op = getattr(torch.ops.mobilevit, name).default

    def autocast(x: Tensor, *args: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return op(x.to(torch.get_autocast_dtype("cpu")) if x.dtype in DTYPES else x, *args)

    torch.library.register_fake(f"mobilevit::{name}", fake)
    LIBRARY.impl(name, autocast, AUTOCAST_DEVICES["cpu"])

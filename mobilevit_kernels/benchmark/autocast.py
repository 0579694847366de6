"""Mixed precision as a user of PyTorch has it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast(device: str, dtype: torch.dtype) -> AbstractContextManager[object]:
    """``torch.autocast`` for half precision; nothing for float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def call_under_autocast(call: Callable[[], Tensor], device: str, dtype: torch.dtype) -> Tensor:
    """``call()`` under :func:`autocast`."""
    with autocast(device, dtype):
        return call()

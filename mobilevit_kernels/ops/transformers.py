"""What the ops of whole transformers share in their registration: fake, autograd, autocast."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mobilevit_kernels.ops.checks import check_patch_grid
from mobilevit_kernels.ops.packing import packed_size
from mobilevit_kernels.ops.registration import AUTOCAST_DEVICES, LIBRARY, channels_last_empty

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_transformer(
    x: Tensor, packed: Tensor, num_layers: int, hidden_dim: int, patch_size: Sequence[int], separable: bool
) -> None:
    """Raises ValueError or TypeError where the arguments break the contract; csrc/cpu/transformer.cpp says the same."""
    check_patch_grid("x", x, patch_size)
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected float32, bfloat16 or float16, got {x.dtype}")
    if packed.dtype != torch.float32:
        raise TypeError(f"packed: expected torch.float32, got {packed.dtype}")
    channels = x.shape[1]
    size = packed_size(channels, hidden_dim, num_layers, separable)
    if packed.dim() != 1 or packed.shape[0] != size:
        raise ValueError(
            f"packed: expected {size} elements for {num_layers} layers of {channels} channels and {hidden_dim} hidden "
            f"ones, got {list(packed.shape)}"
        )


def register_transformer(name: str, separable: bool) -> None:
    """Registers what an op of a whole transformer needs beside its CPU kernel.

    Args:
        name: of the op.
        separable: whether it is that of MobileViT v2, which has no heads.
    """
    op = getattr(torch.ops.mobilevit, name).default

    def fake(x: Tensor, packed: Tensor, num_layers: int, *args: Any) -> Tensor:
        hidden_dim, patch_size, _ = args[-3:]
        check_transformer(x, packed, num_layers, hidden_dim, patch_size, separable)
        return channels_last_empty(x, x.shape[1])

    def inference_only(*args: Any) -> Tensor:
        if torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args):
            raise RuntimeError(f"mobilevit::{name} is for inference and has no gradient: use torch.no_grad()")
        with torch._C._AutoDispatchBelowAutograd():
            return op(*args)

    def autocast(x: Tensor, *args: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return op(x.to(torch.get_autocast_dtype("cpu")) if x.dtype in DTYPES else x, *args)

    torch.library.register_fake(f"mobilevit::{name}", fake)
    LIBRARY.impl(name, inference_only, "Autograd")
    LIBRARY.impl(name, autocast, AUTOCAST_DEVICES["cpu"])

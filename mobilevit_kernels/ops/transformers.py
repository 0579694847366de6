"""What the ops of whole transformers share: their contract and registration."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mobilevit_kernels.ops.checks import check_patch_grid
from mobilevit_kernels.ops.inference import check_storage_dtypes, register_inference_op
from mobilevit_kernels.ops.packing import packed_size
from mobilevit_kernels.ops.registration import channels_last_empty


def check_transformer(
    x: Tensor, packed: Tensor, num_layers: int, hidden_dim: int, patch_size: Sequence[int], separable: bool
) -> None:
    """Raises ValueError or TypeError where the arguments break the contract; csrc/cpu/transformer.cpp says the same."""
    check_patch_grid("x", x, patch_size)
    check_storage_dtypes(x, packed)
    channels = x.shape[1]
    size = packed_size(channels, hidden_dim, num_layers, separable, packed.dtype)
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

    def fake(x: Tensor, packed: Tensor, num_layers: int, *args: Any) -> Tensor:
        hidden_dim, patch_size, _ = args[-3:]
        check_transformer(x, packed, num_layers, hidden_dim, patch_size, separable)
        return channels_last_empty(x, x.shape[1])

    register_inference_op(name, fake)

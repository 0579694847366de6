"""Problems of ``inverted_residual``, in the form that the error rule takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_inverted_residual


@dataclass(frozen=True)
class BlockProblem:
    """One block.

    Attributes:
        tensors: the map ``[B, C, H, W]``, then weight and bias of expansion, depthwise convolution and projection.
        stride, dilation: of the depthwise convolution.
        residual: adds the map.
        products: dtype of the products of the op.
    """

    tensors: tuple[Tensor, ...]
    stride: int = 1
    dilation: int = 1
    residual: bool = False
    products: torch.dtype = torch.float32

    @classmethod
    def random(
        cls,
        size: tuple[int, ...],
        hidden: int,
        out: int,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ) -> "BlockProblem":
        """Draws a problem for maps of this size; it adds the map where the shape allows it."""
        channels = size[1]
        residual = out == channels and options.get("stride", 1) == 1
        shapes = ((hidden, channels, 1, 1), (hidden, 1, 3, 3), (out, hidden, 1, 1))
        tensors = [torch.randn(size).contiguous(memory_format=torch.channels_last)]
        for shape in shapes:
            weight = torch.randn(shape)
            tensors += [1.4 * weight / weight[0].numel() ** 0.5, 0.2 * torch.randn(shape[0])]
        return cls(tuple(t.to(dtype) for t in tensors), residual=residual, **options)  # type: ignore[arg-type]

    @property
    def options(self) -> tuple[int, int, bool]:
        """What both the op and the reference take last."""
        return self.stride, self.dilation, self.residual

    def arguments(self) -> tuple[object, ...]:
        """Everything that the op takes."""
        packed = pack_inverted_residual(*self.tensors[1:], dtype=self.products)
        return (self.tensors[0], packed, self.tensors[1].shape[0], self.tensors[5].shape[0], *self.options)

    def fused(self) -> Tensor:
        """The op."""
        return ops.inverted_residual(*self.arguments())  # type: ignore[arg-type]

    def reference(self) -> Tensor:
        """The layers one after another, in plain PyTorch."""
        return reference.inverted_residual(*self.tensors, *self.options)

    baseline = reference

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "BlockProblem":
        """The problem with every tensor replaced."""
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "BlockProblem":
        """The same problem with another map."""
        first, *others = self.tensors
        return replace(self, tensors=(torch.randn_like(first), *others))

"""Problems of ``convolution``, in the form that the error rule takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_convolution


@dataclass(frozen=True)
class ConvolutionProblem:
    """One layer.

    Attributes:
        tensors: the map ``[B, C, H, W]``, weight and bias.
        stride, padding, dilation: of the convolution.
        silu: activates the result.
        products: dtype of the products of the op.
    """

    tensors: tuple[Tensor, Tensor, Tensor]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    silu: bool = True
    products: torch.dtype = torch.float32

    @classmethod
    def random(
        cls,
        size: tuple[int, ...],
        out: int,
        kernel: int,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ) -> "ConvolutionProblem":
        """Draws a problem for maps of this size."""
        x = torch.randn(size).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(out, size[1], kernel, kernel)
        weight *= 1.4 / weight[0].numel() ** 0.5
        return cls((x.to(dtype), weight.to(dtype), (0.2 * torch.randn(out)).to(dtype)), **options)  # type: ignore[arg-type]

    def arguments(self) -> tuple[object, ...]:
        """Everything that the op takes."""
        x, weight, bias = self.tensors
        packed = pack_convolution(weight, bias, self.products)
        sizes = (weight.shape[0], weight.shape[2], self.stride, self.padding, self.dilation)
        return (x, packed, *sizes, self.silu)

    def fused(self) -> Tensor:
        """The op."""
        return ops.convolution(*self.arguments())  # type: ignore[arg-type]

    def reference(self) -> Tensor:
        """The same in plain PyTorch."""
        return reference.convolution(*self.tensors, self.stride, self.padding, self.dilation, self.silu)

    baseline = reference

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ConvolutionProblem":
        """The problem with every tensor replaced."""
        x, weight, bias = self.tensors
        return replace(self, tensors=(function(x), function(weight), function(bias)))

    def redrawn(self) -> "ConvolutionProblem":
        """The same problem with another map."""
        first, weight, bias = self.tensors
        return replace(self, tensors=(torch.randn_like(first), weight, bias))

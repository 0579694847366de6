"""Problems of the ops of whole transformers, in the form that the error rule takes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from layer_problems import parameters
from torch import Tensor

from mobilevit_kernels import ops, reference
from mobilevit_kernels.ops.packing import pack_separable_transformer, pack_transformer

TRANSFORMERS = ("transformer", "separable_transformer")
EPS = 1e-5


@dataclass(frozen=True)
class TransformerProblem:
    """Some layers and the norm after them.

    Attributes:
        op: one of ``TRANSFORMERS``.
        tensors: the map ``[B, C, H, W]``, the twelve parameters of each layer, and those of the last norm.
        heads: of "transformer".
        patch: (patch_h, patch_w).
    """

    op: str
    tensors: tuple[Tensor, ...]
    heads: int = 4
    patch: tuple[int, int] = (2, 2)

    @classmethod
    def random(
        cls,
        op: str,
        size: tuple[int, ...],
        layers: int = 2,
        dtype: torch.dtype = torch.float32,
        **options: object,
    ) -> "TransformerProblem":
        """Draws a problem for maps of this size."""
        channels = size[1]
        layer = f"{op}_layer"
        tensors = [torch.randn(size).contiguous(memory_format=torch.channels_last)]
        for _ in range(layers):
            tensors += parameters(layer, channels, torch.float32)
        tensors += [1 + 0.2 * torch.randn(channels), 0.2 * torch.randn(channels)]
        return cls(op, tuple(tensor.to(dtype) for tensor in tensors), **options)  # type: ignore[arg-type]

    @property
    def layers(self) -> list[tuple[Tensor, ...]]:
        """The parameters of each layer."""
        return [self.tensors[first : first + 12] for first in range(1, len(self.tensors) - 2, 12)]

    def packed(self) -> Tensor:
        """The parameters as the op takes them."""
        pack = pack_transformer if self.op == "transformer" else pack_separable_transformer
        return pack(self.layers, *self.tensors[-2:])

    def arguments(self) -> tuple[object, ...]:
        """Everything that the op takes."""
        channels = self.tensors[0].shape[1]
        heads = (self.heads,) if self.op == "transformer" else ()
        return (self.tensors[0], self.packed(), len(self.layers), *heads, 2 * channels, list(self.patch), EPS)

    def fused(self) -> Tensor:
        """The op."""
        return getattr(ops, self.op)(*self.arguments())

    def reference(self) -> Tensor:
        """The layers one after another, in plain PyTorch."""
        layer = getattr(reference, f"{self.op}_layer")
        heads = (self.heads,) if self.op == "transformer" else ()
        x = self.tensors[0]
        for values in self.layers:
            x = layer(x, *values, *heads, self.patch, EPS)
        weight, bias = self.tensors[-2:]
        if self.op == "separable_transformer":
            return F.group_norm(x, 1, weight, bias, EPS)
        return F.layer_norm(x.permute(0, 2, 3, 1), weight.shape, weight, bias, EPS).permute(0, 3, 1, 2)

    baseline = reference

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "TransformerProblem":
        """The problem with every tensor replaced."""
        return replace(self, tensors=tuple(function(tensor) for tensor in self.tensors))

    def redrawn(self) -> "TransformerProblem":
        """The same problem with another map."""
        first, *others = self.tensors
        return replace(self, tensors=(torch.randn_like(first), *others))

"""What the modules of one op on packed parameters share."""

from typing import Any

from torch import Tensor, nn


class PackedOp(nn.Module):
    """A module that is one op on packed parameters.

    Args:
        packed: vector, from :mod:`mobilevit_kernels.ops.packing`; becomes a buffer, or a parameter where it is one.
        sizes: named tuple of the arguments that the op takes after it, in its order.
    """

    packed: Tensor

    def __init__(self, packed: Tensor, sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        if isinstance(packed, nn.Parameter):
            self.packed = packed
        else:
            self.register_buffer("packed", packed)

    def extra_repr(self) -> str:
        """Shows the sizes in ``print(model)``."""
        return ", ".join(f"{name}={value}" for name, value in self.sizes._asdict().items())

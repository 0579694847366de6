"""Chains of convolution, norm and activation: in training on the CPU norms run inside the convolutions behind them."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypeAlias

from torch import Tensor, nn

from mobilevit_kernels.models.convolve import convolve, takes_norm
from mobilevit_kernels.models.fused_layers import is_silu
from mobilevit_kernels.models.norm_act import fuses_norm_act, norm_act, update_statistics
from mobilevit_kernels.ops import batch_norm_conv2d

_NOTHING = nn.Identity()


class ConvLayer(NamedTuple):
    """The parts of a layer.

    Attributes:
        conv: the convolution.
        norm: the norm behind it, or None.
        act: the activation behind that, a module of its own or a part of the norm.
        kind: the class of a norm that ops may stand for.
    """

    conv: nn.Conv2d
    norm: nn.Module | None = None
    act: nn.Module = _NOTHING
    kind: type[nn.BatchNorm2d] = nn.BatchNorm2d

    def finish(self, x: Tensor) -> Tensor:
        """Norm and activation of what the convolution returned."""
        return self.act(x) if self.norm is None else norm_act(x, self.norm, self.act, self.kind)

    def finish_into(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """``conv`` of what :meth:`finish` returns."""
        norm = self.norm
        if norm is None or not (fuses_norm_act(x, norm, self.act, self.kind) and takes_norm(x, conv)):
            return convolve(self.finish(x), conv)
        assert isinstance(norm, nn.BatchNorm2d)
        out, mean, var = batch_norm_conv2d(
            x,
            norm.weight,
            norm.bias,
            conv.weight,
            norm.eps,
            is_silu(self.act),
            conv.stride[0],
            conv.dilation[0],
        )
        update_statistics(norm, mean, var, x.numel() // x.shape[1])
        return out


PartsOf: TypeAlias = Callable[[nn.Module], "ConvLayer | None"]


def run_chain(x: Tensor, modules: Sequence[nn.Module], parts_of: PartsOf) -> Tensor:
    """What the modules compute one after another.

    A BatchNorm with a convolution behind it that :func:`mobilevit_kernels.ops.batch_norm_conv2d` can compute runs as
    part of it: the normalised map exists neither then nor until the backward pass.

    Args:
        x: ``[B, C, H, W]``.
        modules: layers of convolution, norm and activation, or convolutions alone.
        parts_of: the parts of a layer, or None where it must be called itself.
    """
    layers = [ConvLayer(m) if isinstance(m, nn.Conv2d) else parts_of(m) for m in modules]
    whole = [layer for layer in layers if layer is not None]
    if len(whole) < len(layers):
        for module in modules:
            x = convolve(x, module) if isinstance(module, nn.Conv2d) else module(x)
        return x
    x = convolve(x, whole[0].conv)
    for layer, following in pairwise(whole):
        x = layer.finish_into(x, following.conv)
    return whole[-1].finish(x)

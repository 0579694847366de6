"""timm's convolutional and feed-forward layers on the kernels that this package has for training on the CPU."""

from typing import Any

from timm.layers import BatchNormAct2d, ConvMlp, ConvNormAct, Mlp
from timm.models.byobnet import BottleneckBlock
from torch import Tensor, fx, nn

from mobilevit_kernels.models.conv_chain import ConvLayer, run_chain
from mobilevit_kernels.models.convolve import convolve, project
from mobilevit_kernels.models.fused_layers import has_hooks, is_plain


class AcceleratedConvNormAct(ConvNormAct):
    """``timm.layers.ConvNormAct``: in training on the CPU the convolution is one op, norm and activation another."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what timm's layer returns."""
        if isinstance(x, fx.Proxy):
            return super().forward(x)
        layer, x = _parts(self), convolve(x, self.conv)
        x = self.bn(x) if layer is None else layer.finish(x)
        blur = getattr(self, "aa", None)
        return x if blur is None else blur(x)


def _parts(layer: Any) -> ConvLayer | None:
    """timm's BatchNorm has dropout and activation inside."""
    norm = layer.bn
    if not (isinstance(norm, BatchNormAct2d) and is_plain(norm.drop, nn.Identity)):
        return None
    return ConvLayer(layer.conv, norm, norm.act, BatchNormAct2d)


def conv_layer(module: nn.Module) -> ConvLayer | None:
    """The parts of an :class:`AcceleratedConvNormAct`, or None where something else, or somebody's hook, is there."""
    if type(module) is not AcceleratedConvNormAct or has_hooks(module):
        return None
    return _parts(module) if getattr(module, "aa", None) is None else None


class AcceleratedBottleneckBlock(BottleneckBlock):
    """``timm.models.byobnet.BottleneckBlock``: in training on the CPU norms run inside the convolutions behind them."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what timm's block returns."""
        between = (self.conv2b_kxk, self.attn)
        if isinstance(x, fx.Proxy) or not all(is_plain(module, nn.Identity) for module in between):
            return super().forward(x)
        out = run_chain(x, (self.conv1_1x1, self.conv2_kxk, self.conv3_1x1), conv_layer)
        out = self.drop_path(self.attn_last(out))
        return self.act(out if self.shortcut is None else out + self.shortcut(x))


class AcceleratedMlp(Mlp):
    """``timm.layers.Mlp`` whose linear layers are products of this package in training on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``[B, H, W, C]`` to tokens."""
        x = project(x, self.fc1)
        if _does_nothing(self.drop1) and _does_nothing(self.norm):
            return self.drop2(project(x, self.fc2, self.act))
        return self.drop2(project(self.norm(self.drop1(self.act(x))), self.fc2))


class AcceleratedConvMlp(ConvMlp):
    """``timm.layers.ConvMlp`` whose convolutions are products of this package in training on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C, H, W]``."""
        x = self.norm(convolve(x, self.fc1))
        if _does_nothing(self.drop):
            return convolve(x, self.fc2, self.act)
        return convolve(self.drop(self.act(x)), self.fc2)


def _does_nothing(module: nn.Module) -> bool:
    return is_plain(module, nn.Identity) or (is_plain(module, nn.Dropout) and getattr(module, "p", 1) == 0)


# timm's class -> ours.
LAYERS = {
    BottleneckBlock: AcceleratedBottleneckBlock,
    ConvMlp: AcceleratedConvMlp,
    ConvNormAct: AcceleratedConvNormAct,
    Mlp: AcceleratedMlp,
}

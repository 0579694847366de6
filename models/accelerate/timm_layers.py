"""timm's convolutional and feed-forward layers on the kernels that this package has for training on the CPU."""

from typing import Any

from timm.layers import BatchNormAct2d, ConvMlp, ConvNormAct, Mlp
from torch import Tensor, fx, nn

from mobilevit_kernels.models.convolve import convolve, project
from mobilevit_kernels.models.fused_layers import is_plain
from mobilevit_kernels.models.norm_act import fused_norm_act, fuses_norm_act


class AcceleratedConvNormAct(ConvNormAct):
    """``timm.layers.ConvNormAct``: in training on the CPU the convolution is one op, norm and activation another."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to what timm's layer returns."""
        if isinstance(x, fx.Proxy):
            return super().forward(x)
        x = _normalize(convolve(x, self.conv), self.bn)
        blur = getattr(self, "aa", None)
        return x if blur is None else blur(x)


def _normalize(x: Tensor, norm: Any) -> Tensor:
    """``norm(x)``; timm's BatchNorm has dropout and activation inside."""
    without_dropout = isinstance(norm, BatchNormAct2d) and is_plain(norm.drop, nn.Identity)
    if without_dropout and fuses_norm_act(x, norm, norm.act, BatchNormAct2d):
        return fused_norm_act(x, norm, norm.act)
    return norm(x)


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
    return (is_plain(module, nn.Dropout) and module.p == 0) or is_plain(module, nn.Identity)


# timm's class -> ours.
LAYERS = {ConvNormAct: AcceleratedConvNormAct, ConvMlp: AcceleratedConvMlp, Mlp: AcceleratedMlp}

"""timm's MobileViT blocks on the ops: subclasses that its modules take in place, and the plan of who takes which."""

from typing import Any

from timm.layers import Attention, DropPath, Mlp
from timm.models import register_notrace_module
from timm.models.mobilevit import (
    LinearSelfAttention,
    LinearTransformerBlock,
    MobileVitBlock,
    MobileVitV2Block,
)
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from mobilevit_kernels import separable_attn, unfold_attn_fold
from mobilevit_kernels.models.accelerate.maps import (
    check_no_dropout,
    is_plain,
    on_unfolded,
)
from mobilevit_kernels.models.accelerate.replacement import (
    AcceleratedBlock,
    Replacement,
    layer_replacements,
    pending_blocks,
    require,
    require_no_active_dropout,
    require_patch_size,
    require_type,
)
from mobilevit_kernels.models.accelerate.timm_layers import LAYERS, conv_layer
from mobilevit_kernels.models.conv_chain import run_chain
from mobilevit_kernels.models.convolve import convolve_joined, project
from mobilevit_kernels.models.layers import channels_last, resize_to_patches
from mobilevit_kernels.models.token_map import to_map, to_tokens, transform_map


class AcceleratedAttention(Attention):
    """``timm.layers.Attention`` on tokens ``[B, H, W, C]`` of a map; reads ``patch_size``."""

    patch_size: tuple[int, int]

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Maps tokens ``[B, H, W, C]`` to tokens; ValueError where a mask is given, which no MobileViT block does."""
        if attn_mask is not None or is_causal:
            raise ValueError("AcceleratedAttention: attn_mask and is_causal are not supported")
        check_no_dropout(self, self.attn_drop)
        # The fused path of timm takes the default scale, whatever self.scale says.
        scale = None if self.fused_attn else self.scale
        attended = unfold_attn_fold(to_map(project(x, self.qkv)), self.num_heads, self.patch_size, scale)
        return self.proj_drop(project(to_tokens(attended), self.proj))


class AcceleratedDropPath(DropPath):
    """``timm.layers.DropPath`` on tokens ``[B, H, W, C]`` of a map; reads ``patch_size``.

    timm drops whole sequences, and a sequence is the tokens of one pixel position of one sample.
    """

    patch_size: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens ``[B, H, W, C]`` to tokens; draws the numbers that timm draws."""
        if self.drop_prob == 0.0 or not self.training:
            return x
        ph, pw = self.patch_size
        kept = super().forward(x.new_ones(x.shape[0] * ph * pw, 1, 1)).reshape(-1, 1, ph, 1, pw, 1)
        grid = x.unflatten(2, (-1, pw)).unflatten(1, (-1, ph))  # [B, H / ph, ph, W / pw, pw, C]
        return (grid * kept).reshape(x.shape)


@register_notrace_module
class AcceleratedMobileVitBlock(AcceleratedBlock, MobileVitBlock):
    """``timm.models.mobilevit.MobileVitBlock`` without unfold and fold."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C', H', W']`` as timm's block does, in channels_last memory."""
        y = run_chain(x, (self.conv_kxk, self.conv_1x1), conv_layer)
        y = self.conv_proj(transform_map(y, self.patch_size, self.transformer, self.norm))
        return y if self.conv_fusion is None else convolve_joined(self.conv_fusion, x, y)


class AcceleratedLinearSelfAttention(LinearSelfAttention):
    """``timm.models.mobilevit.LinearSelfAttention`` on a map; reads ``patch_size``."""

    patch_size: tuple[int, int]

    def forward(self, x: Tensor, x_prev: Tensor | None = None) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C, H, W]``; ValueError for cross-attention, which no block uses.

        Projections that are wrapped or hooked are called, on an unfolded map, instead of being fused.
        """
        if x_prev is not None:
            raise ValueError("AcceleratedLinearSelfAttention: cross-attention (x_prev) is not supported")
        check_no_dropout(self, self.attn_drop)
        qkv, out = self.qkv_proj, self.out_proj
        if not (is_plain(qkv, nn.Conv2d) and is_plain(out, nn.Conv2d)):
            return on_unfolded(super().forward, x, self.patch_size)
        return self.out_drop(separable_attn(x, qkv.weight, qkv.bias, out.weight, out.bias, self.patch_size))


@register_notrace_module
class AcceleratedMobileVitV2Block(AcceleratedBlock, MobileVitV2Block):
    """``timm.models.mobilevit.MobileVitV2Block`` without unfold and fold."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C', H', W']``, (H', W') rounded up to whole patches, channels_last."""
        x = resize_to_patches(x, self.patch_size, align_corners=True)
        x = channels_last(run_chain(x, (self.conv_kxk, self.conv_1x1), conv_layer))
        return self.conv_proj(self.norm(self.transformer(x)))


def plan(model: nn.Module) -> list[Replacement]:
    """Lists what must change for the timm blocks of a model to run on the ops, and changes nothing.

    Args:
        model: any module.

    Raises:
        ValueError: a block, or something inside, is not what timm builds for a MobileViT.
    """
    replacements = []
    for name, block in pending_blocks(model, (MobileVitBlock, MobileVitV2Block)):
        planner = _plan_v1 if isinstance(block, MobileVitBlock) else _plan_v2
        replacements += planner(name, block)
    return replacements + (layer_replacements(model, LAYERS) if replacements else [])


def _plan_v1(name: str, block: Any) -> list[Replacement]:
    require_type(name, block, MobileVitBlock)
    require_patch_size(name, block.patch_size)
    attributes = {"patch_size": block.patch_size}
    plans = [Replacement(name, block, AcceleratedMobileVitBlock, {})]
    for index, layer in enumerate(block.transformer):
        path = f"{name}.transformer.{index}"
        require_type(path, layer, Block)
        require_type(f"{path}.mlp", layer.mlp, Mlp)
        _check_attention(f"{path}.attn", layer.attn)
        plans.append(Replacement(f"{path}.attn", layer.attn, AcceleratedAttention, attributes))
        for key in ("drop_path1", "drop_path2"):
            drop = getattr(layer, key)
            if not isinstance(drop, nn.Identity):
                require_type(f"{path}.{key}", drop, DropPath)
                plans.append(Replacement(f"{path}.{key}", drop, AcceleratedDropPath, attributes))
    return plans


def _check_attention(name: str, attention: Any) -> None:
    require_type(name, attention, Attention)
    for key in ("q_norm", "k_norm", "norm"):
        norm = getattr(attention, key, None)
        require(
            norm is None or isinstance(norm, nn.Identity), f"{name}.{key}", "no norm inside attention", norm
        )
    gate = getattr(attention, "gate", None)
    require(gate is None, f"{name}.gate", "no gate", gate)
    require_no_active_dropout(name, attention, attention.attn_drop)


def _plan_v2(name: str, block: Any) -> list[Replacement]:
    require_type(name, block, MobileVitV2Block)
    require_patch_size(name, block.patch_size)
    plans = [Replacement(name, block, AcceleratedMobileVitV2Block, {})]
    for index, layer in enumerate(block.transformer):
        path = f"{name}.transformer.{index}"
        require_type(path, layer, LinearTransformerBlock)
        require_type(f"{path}.attn", layer.attn, LinearSelfAttention)
        require_no_active_dropout(f"{path}.attn", layer.attn, layer.attn.attn_drop)
        attributes = {"patch_size": block.patch_size}
        plans.append(Replacement(f"{path}.attn", layer.attn, AcceleratedLinearSelfAttention, attributes))
    return plans

"""The MobileViT layers of transformers on the ops: subclasses that modules take in place, and the plan of it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mobilevit.modeling_mobilevit import (
    MobileViTAttention,
    MobileViTLayer,
    MobileViTSelfAttention,
    MobileViTTransformer,
    MobileViTTransformerLayer,
)
from transformers.models.mobilevitv2.modeling_mobilevitv2 import (
    MobileViTV2Layer,
    MobileViTV2LinearSelfAttention,
    MobileViTV2Transformer,
    MobileViTV2TransformerLayer,
)

from mobilevit_kernels import separable_attn, unfold_attn_fold
from mobilevit_kernels.models.accelerate.huggingface_layers import (
    LAYERS,
    AcceleratedMobileViTV2ConvLayer,
    conv_layer,
)
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
from mobilevit_kernels.models.conv_chain import run_chain
from mobilevit_kernels.models.convolve import convolve_joined
from mobilevit_kernels.models.layers import channels_last
from mobilevit_kernels.models.token_map import to_map, to_tokens, transform_map


class AcceleratedMobileViTSelfAttention(MobileViTSelfAttention):
    """``MobileViTSelfAttention`` on tokens ``[B, H, W, C]`` of a map; reads ``patch_size``."""

    patch_size: tuple[int, int]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps tokens ``[B, H, W, C]`` to tokens, before the output projection."""
        check_no_dropout(self, self.dropout)
        qkv = to_map(self._project(hidden_states))
        return to_tokens(unfold_attn_fold(qkv, self.num_attention_heads, self.patch_size))

    def _project(self, tokens: Tensor) -> Tensor:
        """Returns query | key | value ``[B, H, W, 3C]``: one product where the three layers are plain."""
        layers = (self.query, self.key, self.value)
        if not all(is_plain(layer, nn.Linear) for layer in layers):
            return torch.cat([layer(tokens) for layer in layers], dim=-1)
        weight = torch.cat((self.query.weight, self.key.weight, self.value.weight))
        biases: list[Tensor] = [layer.bias for layer in layers if layer.bias is not None]
        return F.linear(tokens, weight, torch.cat(biases) if biases else None)


class AcceleratedMobileViTLayer(AcceleratedBlock, MobileViTLayer):
    """``MobileViTLayer`` without unfold and fold."""

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C', H', W']`` as transformers' layer does, in channels_last memory."""
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        local = run_chain(features, (self.conv_kxk, self.conv_1x1), conv_layer)
        patch_size: Any = (self.patch_height, self.patch_width)
        projected = self.conv_projection(transform_map(local, patch_size, self.transformer, self.layernorm))
        return convolve_joined(self.fusion, features, projected)


class AcceleratedMobileViTV2LinearSelfAttention(MobileViTV2LinearSelfAttention):
    """``MobileViTV2LinearSelfAttention`` on a map; reads ``patch_size``."""

    patch_size: tuple[int, int]

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C, H, W]``.

        Projections that are wrapped or hooked are called, on an unfolded map, instead of being fused.
        """
        check_no_dropout(self, self.attn_dropout)
        if not (_is_plain_projection(self.qkv_proj) and _is_plain_projection(self.out_proj)):
            return on_unfolded(super().forward, hidden_states, self.patch_size)
        qkv, out = self.qkv_proj.convolution, self.out_proj.convolution
        return separable_attn(hidden_states, qkv.weight, qkv.bias, out.weight, out.bias, self.patch_size)


class AcceleratedMobileViTV2Layer(AcceleratedBlock, MobileViTV2Layer):
    """``MobileViTV2Layer`` without unfold and fold.

    Like the original it takes whole patches only: the rows and columns that remain are left out, and zero in the map
    that the last projection reads.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Maps ``[B, C, H, W]`` to ``[B, C', H', W']``, channels_last; ValueError where no patch fits."""
        if self.downsampling_layer is not None:
            features = self.downsampling_layer(features)
        x = run_chain(features, (self.conv_kxk, self.conv_1x1), conv_layer)
        height, width = x.shape[2:]
        patch: Any = (self.patch_height, self.patch_width)
        rows, columns = height % patch[0], width % patch[1]
        if height < patch[0] or width < patch[1]:
            sizes = f"{height} x {width} holds no patch of {patch[0]} x {patch[1]}"
            raise ValueError(f"{type(self).__name__}: a map of {sizes}")
        x = channels_last(x[:, :, : height - rows, : width - columns])
        x = self.layernorm(self.transformer(x))
        return self.conv_projection(F.pad(x, (0, columns, 0, rows)) if rows or columns else x)


def plan(model: nn.Module) -> list[Replacement]:
    """Lists what must change for the transformers blocks of a model to run on the ops, and changes nothing.

    Args:
        model: any module.

    Raises:
        ValueError: a block, or something inside, is not what transformers builds for a MobileViT, or the
            configuration asks for attention maps.
    """
    replacements = []
    for name, block in pending_blocks(model, (MobileViTLayer, MobileViTV2Layer)):
        planner = _plan_v1 if isinstance(block, MobileViTLayer) else _plan_v2
        replacements += planner(name, block)
    if replacements:
        _check_no_attention_maps(model)
    return replacements + (layer_replacements(model, LAYERS) if replacements else [])


def _check_no_attention_maps(model: nn.Module) -> None:
    for name, module in model.named_modules():
        wanted = getattr(getattr(module, "config", None), "output_attentions", False)
        expected = "output_attentions=False, as attention maps are never formed"
        require(not wanted, f"{name or type(module).__name__}.config", expected, wanted)


def _plan_v1(name: str, block: Any) -> list[Replacement]:
    require_type(name, block, MobileViTLayer)
    patch_size = (block.patch_height, block.patch_width)
    require_patch_size(name, patch_size)
    require_type(f"{name}.transformer", block.transformer, MobileViTTransformer)
    plans = [Replacement(name, block, AcceleratedMobileViTLayer, {})]
    for index, layer in enumerate(block.transformer.layer):
        path = f"{name}.transformer.layer.{index}"
        require_type(path, layer, MobileViTTransformerLayer)
        require_type(f"{path}.attention", layer.attention, MobileViTAttention)
        path, attention = f"{path}.attention.attention", layer.attention.attention
        require_type(path, attention, MobileViTSelfAttention)
        require_no_active_dropout(path, attention, attention.dropout)
        plans.append(
            Replacement(path, attention, AcceleratedMobileViTSelfAttention, {"patch_size": patch_size})
        )
    return plans


def _plan_v2(name: str, block: Any) -> list[Replacement]:
    require_type(name, block, MobileViTV2Layer)
    patch_size = (block.patch_height, block.patch_width)
    require_patch_size(name, patch_size)
    require_type(f"{name}.transformer", block.transformer, MobileViTV2Transformer)
    plans = [Replacement(name, block, AcceleratedMobileViTV2Layer, {})]
    for index, layer in enumerate(block.transformer.layer):
        path = f"{name}.transformer.layer.{index}"
        require_type(path, layer, MobileViTV2TransformerLayer)
        path, attention = f"{path}.attention", layer.attention
        require_type(path, attention, MobileViTV2LinearSelfAttention)
        require_no_active_dropout(path, attention, attention.attn_dropout)
        attributes = {"patch_size": patch_size}
        plans.append(Replacement(path, attention, AcceleratedMobileViTV2LinearSelfAttention, attributes))
    return plans


def _is_plain_projection(layer: Any) -> bool:
    return (
        is_plain(layer, AcceleratedMobileViTV2ConvLayer)
        and layer.normalization is None
        and layer.activation is None
        and is_plain(layer.convolution, nn.Conv2d)
    )

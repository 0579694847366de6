"""Where separable self-attention looks: its scores as a map over the image."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mobilevit_kernels import use_backend
from mobilevit_kernels.models import SeparableAttention
from mobilevit_kernels.reference import unfold


class ScoreMaps(NamedTuple):
    """Scores of one layer: ``maps`` is ``[B, H, W]`` in patches, 1 where a patch weighs as much as the average one."""

    layer: str
    maps: Tensor


def score_maps(model: nn.Module, images: Tensor) -> ScoreMaps | None:
    """Scores of the last separable layer among those on the largest map.

    The scores are the softmax of the query over the N tokens that share a pixel position (arXiv 2206.02680,
    equation 3); here they are averaged over the positions of each patch, and scaled by N so that 1 is the average.

    Args:
        model: in eval mode.
        images: ``[B, 3, H, W]``.

    Returns:
        The maps, or None where the model has no such layer.
    """
    inputs: dict[str, tuple[SeparableAttention, Tensor]] = {}

    def hook_for(name: str) -> Any:
        def hook(module: SeparableAttention, args: tuple[Tensor, ...]) -> None:
            inputs[name] = (module, args[0])

        return hook

    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, SeparableAttention)
    }
    hooks = [module.register_forward_pre_hook(hook_for(name)) for name, module in layers.items()]
    try:
        with torch.inference_mode(), use_backend("reference"):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not inputs:
        return None
    largest = max(x.shape[2:].numel() for _, x in inputs.values())
    name = [name for name, (_, x) in inputs.items() if x.shape[2:].numel() == largest][-1]
    return ScoreMaps(name, _scores(*inputs[name]))


def _scores(layer: SeparableAttention, x: Tensor) -> Tensor:
    with torch.inference_mode():
        bias = None if layer.qkv_proj.bias is None else layer.qkv_proj.bias[:1]
        query = nn.functional.conv2d(x, layer.qkv_proj.weight[:1], bias)  # [B, 1, H, W]
        tokens = unfold(query, layer.patch_size)  # [B, 1, P, N]
        scores = tokens.softmax(dim=-1).mean(dim=2) * tokens.shape[-1]  # [B, 1, N]
        patch_h, patch_w = layer.patch_size
        return scores.reshape(len(x), x.shape[2] // patch_h, x.shape[3] // patch_w)

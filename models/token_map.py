"""Transformer layers on a feature map: every token stays where its pixel is, so nothing is unfolded."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models.layers import channels_last, resize_to_patches


def to_tokens(x: Tensor) -> Tensor:
    """Views a map ``[B, C, H, W]`` as tokens ``[B, H, W, C]``; copies once unless it is channels_last."""
    return channels_last(x).permute(0, 2, 3, 1)


def to_map(tokens: Tensor) -> Tensor:
    """Views tokens ``[B, H, W, C]`` as a channels_last map ``[B, C, H, W]``."""
    return tokens.permute(0, 3, 1, 2)


class MapTransformer(nn.Module):
    """Base of the transformers that take and return maps, and need no norm after them."""


def transform_map(
    x: Tensor,
    patch_size: tuple[int, int],
    transformer: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
) -> Tensor:
    """The global representation of the MobileViT block (arXiv 2110.02178, section 3.1) without its unfold and fold.

    A size that is no multiple of the patch is resized up (bilinear, align_corners=False) and back again.

    Args:
        x: ``[B, C, H, W]``, any strides.
        patch_size: (patch_h, patch_w).
        transformer: maps tokens ``[B, H, W, C]`` to tokens; each of its layers acts on single tokens, but for its
            attention, which knows the patch size. Or a :class:`MapTransformer`.
        norm: maps tokens to tokens, each alone; not called after a :class:`MapTransformer`.

    Returns:
        ``[B, C, H, W]``; channels_last unless compiled.
    """
    resized = resize_to_patches(x, patch_size, align_corners=False)
    if isinstance(transformer, MapTransformer):
        y = transformer(resized)
    else:
        y = to_map(norm(transformer(to_tokens(resized))))
    if torch.compiler.is_dynamo_compiling():
        # Costs nothing: Inductor fuses it and lays it out as the next convolution wants. Given the permuted view
        # instead, Inductor of torch 2.13 cannot order its strides where H and W are dynamic, and fails.
        y = y.contiguous()
    if y.shape[2:] == x.shape[2:]:
        return y
    return F.interpolate(y, size=x.shape[2:], mode="bilinear", align_corners=False)

"""Unfold and fold: the token layout of MobileViT (arXiv 2110.02178, section 3.1)."""

from torch import Tensor


def unfold(x: Tensor, patch_size: tuple[int, int]) -> Tensor:
    """Groups the pixels of a map by their position inside the patch.

    Args:
        x: map ``[B, C, H, W]``; H and W divisible by the patch.
        patch_size: (patch_h, patch_w).

    Returns:
        ``[B, C, P, N]`` with P = patch_h * patch_w pixel positions and N = (H / patch_h) * (W / patch_w) tokens.
    """
    batch, channels, height, width = x.shape
    ph, pw = patch_size
    grid = x.reshape(batch, channels, height // ph, ph, width // pw, pw)
    return grid.permute(0, 1, 3, 5, 2, 4).reshape(batch, channels, ph * pw, (height // ph) * (width // pw))


def fold(tokens: Tensor, size: tuple[int, int], patch_size: tuple[int, int]) -> Tensor:
    """Inverse of :func:`unfold`.

    Args:
        tokens: ``[B, C, P, N]``.
        size: (H, W) of the map.
        patch_size: (patch_h, patch_w).

    Returns:
        ``[B, C, H, W]``.
    """
    batch, channels = tokens.shape[:2]
    (height, width), (ph, pw) = size, patch_size
    grid = tokens.reshape(batch, channels, ph, pw, height // ph, width // pw)
    return grid.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels, height, width)

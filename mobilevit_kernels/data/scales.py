"""The image sizes of multi-scale training, and the batch size of each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mobilevit_kernels.data.checks import checked_int, checked_size
from mobilevit_kernels.models.layers import make_divisible

Size = int | Sequence[int]


class Scale(NamedTuple):
    """An image size in pixels, and how many images of it make a batch."""

    height: int
    width: int
    batch: int


def scale_list(
    base_size: Size = 256,
    min_size: Size = 160,
    max_size: Size = 320,
    num_scales: int = 5,
    divisor: int = 32,
) -> list[tuple[int, int]]:
    """Sizes of the MobileViT multi-scale sampler (section 3.3 of arXiv 2110.02178), smallest first.

    ``num_scales`` sizes evenly spaced from smallest to largest, and the base size, each side rounded to a multiple of
    ``divisor``; equal ones count once. Heights and widths are paired: there is no grid of both.

    Args:
        base_size: size that the batch size is given for; (height, width) or one int, pixels.
        min_size: smallest size.
        max_size: largest size.
        num_scales: sizes before the base size is added and equal ones are dropped.
        divisor: of every side.

    Returns:
        (height, width) of every size; 160, 192, 256, 288 and 320, squared, by default.

    Raises:
        TypeError: an argument is no int, or no size.
        ValueError: an argument is not positive, or a side of ``min_size`` is larger than that of ``max_size``.
    """
    base, low, high = (
        checked_size(name, size)
        for name, size in (("base_size", base_size), ("min_size", min_size), ("max_size", max_size))
    )
    num_scales, divisor = checked_int("num_scales", num_scales), checked_int("divisor", divisor)
    if low[0] > high[0] or low[1] > high[1]:
        raise ValueError(f"min_size: expected at most max_size {high}, got {low}")
    sides = [np.linspace(first, last, num_scales) for first, last in zip(low, high, strict=True)]
    sizes = [*zip(*sides, strict=True), base]
    return sorted({(make_divisible(h, divisor), make_divisible(w, divisor)) for h, w in sizes})


def variable_batch(size: tuple[int, int], base_size: tuple[int, int], base_batch_size: int) -> int:
    """Images of ``size`` that have as many pixels as a batch at the base size, at least 1.

    The quotient is rounded to two decimals and then cut, as version 0.4 of cvnets does.
    """
    pixels = base_size[0] * base_size[1] * base_batch_size
    return max(1, int(round(pixels / (size[0] * size[1]), 2)))

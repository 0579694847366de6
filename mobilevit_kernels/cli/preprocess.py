"""From an image to the model's input, as the library that a checkpoint comes from prepares it."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mobilevit_kernels.cli.errors import UserError

ChannelOrder = Literal["rgb", "bgr"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Rounding = Literal["floor", "half_even"]

# Above this many pixels a resized image is refused: only a strip, thousands of times longer than wide, gets there.
MAX_RESIZED_PIXELS = 100_000_000

_ZEROS, _ONES = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Preprocess:
    """Resize the short side, crop the centre, scale to [0, 1], order the channels, normalise.

    Args:
        resize: short side after the resize, pixels. Pillow's filters, which smooth when they shrink.
        crop: side of the centre crop, pixels; what lies outside the image is black.
        interpolation: filter of the resize.
        channel_order: "rgb", or "bgr" for weights that were trained on images as OpenCV reads them.
        crop_rounding: where the crop starts if the margin is odd: "floor" (cvnets, Hugging Face) or "half_even"
            (torchvision, and so timm).
        mean: per channel, subtracted after scaling; zeros for every published MobileViT.
        std: per channel, divided by; ones for every published MobileViT.
    """

    resize: int
    crop: int
    interpolation: Interpolation
    channel_order: ChannelOrder = "rgb"
    crop_rounding: Rounding = "floor"
    mean: tuple[float, float, float] = _ZEROS
    std: tuple[float, float, float] = _ONES

    def __call__(self, image: Image.Image) -> Tensor:
        """Prepares one image.

        Args:
            image: any size, mode RGB.

        Returns:
            ``[3, crop, crop]`` float32.

        Raises:
            UserError: the image is so long and thin that its resized form would not fit in memory.
        """
        cropped = self.crop_image(image)
        pixels = torch.from_numpy(np.array(cropped, dtype=np.float32)).permute(2, 0, 1) / 255.0
        if self.channel_order == "bgr":
            pixels = pixels.flip(0)
        mean, std = (
            torch.tensor(values, dtype=torch.float32)[:, None, None] for values in (self.mean, self.std)
        )
        return ((pixels - mean) / std).contiguous()

    def crop_image(self, image: Image.Image) -> Image.Image:
        """Returns the square of ``image`` that the model sees, ``crop`` pixels a side."""
        size = self._resized_size(*image.size)
        resized = image.resize(size, Image.Resampling[self.interpolation.upper()])
        left, top = (self._crop_start(total) for total in size)
        return resized.crop((left, top, left + self.crop, top + self.crop))

    def describe(self) -> str:
        """One line for people."""
        plain = self.mean == _ZEROS and self.std == _ONES
        normalise = "" if plain else f", mean {self.mean}, std {self.std}"
        return (
            f"short side {self.resize} {self.interpolation}, centre crop {self.crop}, "
            f"{self.channel_order.upper()} in [0, 1]{normalise}"
        )

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        long_side = int(self.resize * max(width, height) / min(width, height))
        if self.resize * long_side > MAX_RESIZED_PIXELS:
            raise UserError(
                f"an image of {width} x {height} pixels is too long and thin to resize to {self.resize}"
            )
        return (self.resize, long_side) if width <= height else (long_side, self.resize)

    def _crop_start(self, total: int) -> int:
        margin = total - self.crop
        return margin // 2 if self.crop_rounding == "floor" else round(margin / 2)


def default_preprocess(checkpoint_format: str, model_name: str, size: int = 256) -> Preprocess:
    """The evaluation transform of the library that a checkpoint comes from.

    - timm: RGB, bicubic, crop 0.9 of the resized side for v1 and 0.888 for v2 (all of it from 384 px on). v3 is not
      in timm: weights in its key names are taken to be converted from cvnets, and prepared as those.
    - cvnets: v1 and the v3 models built on it come from releases that read images with OpenCV, BGR, bilinear; v2 and
      its v3 models from releases that read with Pillow, RGB, bicubic. Resize to size + 32 (v2 from 384 px on: to size).
      OpenCV's bilinear filter does not smooth when it shrinks; Pillow's, which is used here, does.
    - Hugging Face: its MobileViTImageProcessor flips to BGR and resizes to size + 32, for v1 and v2 alike, although
      the v2 weights were trained on RGB. This follows the processor; ``--channel-order rgb`` is the other reading.

    Args:
        checkpoint_format: "timm", "cvnets" or "hf".
        model_name: a name of ``list_models``.
        size: side of the model's input, pixels.

    Raises:
        ValueError: unknown format.
    """
    version, on_v1 = model_generation(model_name)
    margin = 0 if not on_v1 and size >= 384 else 32
    if checkpoint_format == "timm" and version < 3:
        crop_fraction = 1.0 if margin == 0 else (0.9 if on_v1 else 0.888)
        return Preprocess(math.floor(size / crop_fraction), size, "bicubic", "rgb", "half_even")
    if checkpoint_format in ("timm", "cvnets"):
        return Preprocess(size + margin, size, *(("bilinear", "bgr") if on_v1 else ("bicubic", "rgb")))
    if checkpoint_format == "hf":
        return Preprocess(size + 32, size, "bilinear" if on_v1 else "bicubic", "bgr")
    raise ValueError(f"checkpoint_format: expected 'timm', 'cvnets' or 'hf', got {checkpoint_format!r}")


def model_generation(model_name: str) -> tuple[int, bool]:
    """Returns the generation (1, 2 or 3) and whether the model is built on v1 (else on v2)."""
    if model_name.startswith("mobilevitv3_"):
        return 3, not model_name.removeprefix("mobilevitv3_")[0].isdigit()
    return (2, False) if model_name.startswith("mobilevitv2_") else (1, True)

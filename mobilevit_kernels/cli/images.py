"""Reading image files of every kind that Pillow knows into 8-bit RGB."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mobilevit_kernels.cli.errors import UserError

_SIXTEEN_BIT_MAX = 65535


def open_image(path: Path) -> Image.Image:
    """Reads one image, upright and in RGB.

    The first frame of an animation; EXIF orientation applied; alpha dropped, as torchvision and timm do; 16-bit
    greyscale scaled to 8 bits; CMYK, palette and greyscale converted.

    Args:
        path: the file.

    Returns:
        An image of mode RGB with at least one pixel.

    Raises:
        UserError: missing, unreadable, empty, truncated, or no image; the message names the file.
    """
    try:
        if path.stat().st_size == 0 and path.is_file():
            raise UserError(f"{path}: the file is empty")
        with Image.open(path) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            return _to_rgb(upright, path)
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: {_reason(error)}") from error


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode.startswith("I"):
        return _from_integers(image, path)
    if image.mode == "F":
        raise UserError(f"{path}: expected pixels of 8 or 16 bits, got floating point")
    if image.mode == "P":
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_integers(image: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > _SIXTEEN_BIT_MAX:
        raise UserError(f"{path}: expected pixels of 8 or 16 bits, got values from {low} to {high}")
    grey = np.round(values * (255 / _SIXTEEN_BIT_MAX)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _reason(error: Exception) -> str:
    """The operating system's words where they are its (the path is already named), else Pillow's."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()

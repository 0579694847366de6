"""Image files of every kind become upright 8-bit RGB, and files that are none one clear error."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.images import open_image


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.webp"])
def test_rgb_files_are_read_exactly(name: str, gradient: np.ndarray, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(gradient).save(tmp_path / name, **options)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / name)), gradient)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, gradient: np.ndarray, tmp_path: Path) -> None:
    # How a camera stores an upright scene under each value of the tag (EXIF 2.3, table 6).
    stored = {
        1: gradient,
        2: gradient[:, ::-1],
        3: gradient[::-1, ::-1],
        4: gradient[::-1],
        5: gradient.swapaxes(0, 1),
        6: np.rot90(gradient, 1),
        7: np.rot90(gradient, 2).swapaxes(0, 1),
        8: np.rot90(gradient, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), gradient)


def test_greyscale_is_repeated(gradient: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(gradient[..., 0]).save(tmp_path / "a.png")
    expected = np.repeat(gradient[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), expected)


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_sixteen_bits_are_scaled_not_clipped(name: str, gradient: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(gradient[..., 0].astype(np.uint16) * 257).save(tmp_path / name)
    expected = np.repeat(gradient[..., :1], 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / name)), expected)


def test_palette_keeps_its_colours(tmp_path: Path) -> None:
    indices = np.tile(np.arange(4, dtype=np.uint8), (4, 1))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]], dtype=np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putpalette(colours.flatten().tolist())
    image.save(tmp_path / "a.png", transparency=bytes([0, 255, 255, 255]))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), colours[indices])


def test_alpha_is_dropped(gradient: np.ndarray, tmp_path: Path) -> None:
    rgba = np.dstack([gradient, np.full(gradient.shape[:2], 128, np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "a.png")), gradient)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    red.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(np.asarray(open_image(tmp_path / "a.jpg")), np.asarray(red), atol=3)


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "a.gif").getpixel((4, 4)) == (255, 0, 0)


def _bad_file(kind: str, folder: Path, photo: Image.Image) -> Path:
    path = folder / f"{kind}.jpg"
    if kind == "text":
        path.write_text("not an image at all")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "truncated":
        photo.save(path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "floating":
        path = path.with_suffix(".tiff")
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("text", "not an image"),
        ("empty", "the file is empty"),
        ("folder", "is a directory"),
        ("truncated", "truncated"),
        ("missing", "no such file"),
        ("floating", "floating point"),
    ],
)
def test_what_is_no_image_is_one_clear_line(
    kind: str, reason: str, photo: Image.Image, tmp_path: Path
) -> None:
    path = _bad_file(kind, tmp_path, photo)
    with pytest.raises(UserError) as raised:
        open_image(path)
    assert reason in str(raised.value)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)

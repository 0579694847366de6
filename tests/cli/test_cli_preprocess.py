"""Preprocessing against the libraries whose weights it serves."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.preprocess import Preprocess, default_preprocess
from mobilevit_kernels.cli.sidecar import sidecar_preprocess

# Of one 8-bit step; both sides round to 8 bits after the resize, so only float32 arithmetic may differ.
TOLERANCE = 1e-6

# Wide, high, square, small, and sizes whose crop margin is odd (where the libraries round differently).
SIZES = [(451, 300), (300, 451), (256, 256), (40, 60), (64, 77), (513, 288), (300, 297)]


def _image(size: tuple[int, int]) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _hugging_face_processor(**kwargs: Any) -> Any:
    module = "transformers.models.mobilevit.image_processing"
    try:
        processor = importlib.import_module(f"{module}_pil_mobilevit").MobileViTImageProcessorPil
    except ImportError:
        processor = pytest.importorskip(f"{module}_mobilevit").MobileViTImageProcessor
    return processor(**kwargs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("model", "resample"), [("mobilevit_s", 2), ("mobilevitv2_100", 3)])
def test_equals_hugging_face_processor(model: str, resample: int, size: tuple[int, int]) -> None:
    processor = _hugging_face_processor(
        size={"shortest_edge": 288}, crop_size={"height": 256, "width": 256}, resample=resample
    )
    expected = processor(_image(size), return_tensors="pt")["pixel_values"][0]
    actual = default_preprocess("hf", model)(_image(size))
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def test_processor_saved_beside_the_weights_is_followed(tmp_path: Path) -> None:
    # The crop is larger than the resized image: this processor then pads with black.
    processor = _hugging_face_processor(size={"shortest_edge": 64}, crop_size=80, do_flip_channel_order=False)
    processor.save_pretrained(tmp_path)
    preprocess = sidecar_preprocess(tmp_path / "model.safetensors", "hf")
    assert preprocess == Preprocess(64, 80, "bicubic", "rgb")
    expected = processor(_image((70, 65)), return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(_image((70, 65))), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("model", "side"), [("mobilevit_s", 256), ("mobilevitv2_100", 256), ("mobilevitv2_200", 384)]
)
def test_equals_timm_transform(model: str, side: int, size: tuple[int, int]) -> None:
    timm = pytest.importorskip("timm")
    tag = "cvnets_in22k_ft_in1k_384" if side == 384 else "cvnets_in1k"
    config = timm.get_pretrained_cfg(f"{model}.{tag}").to_dict()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=config))
    actual = default_preprocess("timm", model, side)(_image(size))
    torch.testing.assert_close(actual, transform(_image(size)), atol=TOLERANCE, rtol=0)


def test_timm_config_beside_the_weights_is_followed(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    config = {"input_size": (3, 96, 96), "crop_pct": 0.95, "interpolation": "bilinear", "crop_mode": "center"}
    config |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    preprocess = sidecar_preprocess(tmp_path / "model.safetensors", "timm")
    expected = timm.data.create_transform(**timm.data.resolve_data_config(config))(_image((150, 131)))
    assert preprocess is not None
    torch.testing.assert_close(preprocess(_image((150, 131))), expected, atol=TOLERANCE, rtol=1e-6)


@pytest.mark.parametrize(
    ("checkpoint_format", "model", "size", "expected"),
    [
        ("cvnets", "mobilevit_xs", 256, Preprocess(288, 256, "bilinear", "bgr")),
        ("cvnets", "mobilevitv2_150", 256, Preprocess(288, 256, "bicubic", "rgb")),
        ("cvnets", "mobilevitv2_150", 384, Preprocess(384, 384, "bicubic", "rgb")),
        ("cvnets", "mobilevitv3_s_fast", 256, Preprocess(288, 256, "bilinear", "bgr")),
        ("cvnets", "mobilevitv3_075", 256, Preprocess(288, 256, "bicubic", "rgb")),
        ("timm", "mobilevitv3_xxs", 256, Preprocess(288, 256, "bilinear", "bgr")),
        ("timm", "mobilevit_xxs", 192, Preprocess(213, 192, "bicubic", "rgb", "half_even")),
        ("hf", "mobilevitv2_100", 128, Preprocess(160, 128, "bicubic", "bgr")),
    ],
)
def test_defaults_of_each_kind(checkpoint_format: str, model: str, size: int, expected: Preprocess) -> None:
    assert default_preprocess(checkpoint_format, model, size) == expected


def test_cvnets_geometry_against_closed_form() -> None:
    # 288 x 300 pixels, one grey level a column: nothing to resize, and the centre is columns 22 to 277.
    ramp = np.minimum(np.arange(300), 255).astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(ramp[None, :, None], (288, 300, 3)).copy())
    actual = default_preprocess("cvnets", "mobilevit_s")(image)
    assert actual.shape == (3, 256, 256)
    expected = torch.from_numpy(ramp[22:278].astype(np.float32)) / 255
    torch.testing.assert_close(actual, expected.expand(3, 256, 256), atol=TOLERANCE, rtol=0)


def test_bgr_reverses_channels(photo: Image.Image) -> None:
    rgb, bgr = (Preprocess(72, 64, "bilinear", order)(photo) for order in ("rgb", "bgr"))
    torch.testing.assert_close(bgr, rgb[[2, 1, 0]], atol=0, rtol=0)
    assert not torch.equal(bgr, rgb)


def test_unknown_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected 'timm', 'cvnets' or 'hf', got 'keras'"):
        default_preprocess("keras", "mobilevit_s")


def test_a_strip_that_would_not_fit_in_memory_is_an_error() -> None:
    with pytest.raises(UserError, match="1 x 20000 pixels is too long and thin"):
        default_preprocess("timm", "mobilevit_s")(Image.new("RGB", (1, 20000)))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("preprocessor_config.json", "{", "not readable as JSON"),
        ("preprocessor_config.json", "[]", "expected a JSON object, got list"),
        ("preprocessor_config.json", '{"size": {"height": 256, "width": 256}}', "not supported"),
        (
            "preprocessor_config.json",
            '{"crop_size": {"height": 256, "width": 224}}',
            "square crop, got 256 x 224",
        ),
        ("preprocessor_config.json", '{"resample": 5}', "got 'HAMMING'"),
        (
            "config.json",
            '{"pretrained_cfg": {"input_size": [1, 28, 28]}}',
            "expected 3 input channels, got 1",
        ),
        (
            "config.json",
            '{"pretrained_cfg": {"input_size": [3, 9, 9], "crop_mode": "squash"}}',
            "got 'squash'",
        ),
    ],
)
def test_unusable_config_beside_the_weights_is_an_error(
    name: str, content: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason) as raised:
        sidecar_preprocess(tmp_path / "weights.pt", "hf" if name.startswith("pre") else "timm")
    assert str(tmp_path / name) in str(raised.value)


def test_no_config_beside_the_weights(tmp_path: Path) -> None:
    assert [sidecar_preprocess(tmp_path / "weights.pt", kind) for kind in ("timm", "cvnets", "hf")] == [
        None
    ] * 3

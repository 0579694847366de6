"""The JSON files that timm and Hugging Face keep beside their weights: preprocessing and class names."""

import json
import math
from pathlib import Path
from typing import Any, get_args

from PIL import Image

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.preprocess import Interpolation, Preprocess

_ZEROS, _ONES = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]


def sidecar_preprocess(weights: Path, checkpoint_format: str) -> Preprocess | None:
    """Reads the transform that lies beside a checkpoint.

    Args:
        weights: the checkpoint's file or folder.
        checkpoint_format: "hf" reads preprocessor_config.json, "timm" the pretrained_cfg of config.json.

    Returns:
        The transform, or None where there is no such file.

    Raises:
        UserError: the file is there and asks for what :class:`Preprocess` cannot do, or is no JSON.
    """
    if checkpoint_format == "hf":
        path, read = beside(weights) / "preprocessor_config.json", _from_hugging_face
        config = read_json(path)
    elif checkpoint_format == "timm":
        path, read = beside(weights) / "config.json", _from_timm
        config = (read_json(path) or {}).get("pretrained_cfg")
    else:
        return None
    if config is None:
        return None
    try:
        return read(config)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: preprocessing that is not supported ({error})") from error


def sidecar_labels(weights: Path) -> dict[int, str] | None:
    """Reads class names from the config.json beside a checkpoint: Hugging Face's id2label or timm's label_names.

    Raises:
        UserError: the file is no JSON, or its class indices are no integers.
    """
    path = beside(weights) / "config.json"
    config = read_json(path) or {}
    names = config.get("id2label") or config.get("label_names")
    if names is None:
        return None
    try:
        return {
            int(i): str(name) for i, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
    except ValueError as error:
        raise UserError(f"{path}: expected integer class indices in id2label ({error})") from error


def beside(weights: Path) -> Path:
    """The folder of a checkpoint, which may itself be a folder that transformers saved."""
    return weights if weights.is_dir() else weights.parent


def read_json(path: Path) -> dict[str, Any] | None:
    """Returns the JSON object in a file, or None where there is no file.

    Raises:
        UserError: the file is there but holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _from_hugging_face(config: dict[str, Any]) -> Preprocess:
    crop = config.get("crop_size", 256)
    resize = config.get("size", 224)
    normalise = bool(config.get("do_normalize"))
    return Preprocess(
        resize=int(resize["shortest_edge"] if isinstance(resize, dict) else resize),
        crop=_square(crop["height"], crop["width"]) if isinstance(crop, dict) else int(crop),
        interpolation=_interpolation(Image.Resampling(config.get("resample", 3)).name),
        channel_order="bgr" if config.get("do_flip_channel_order", True) else "rgb",
        mean=_triple(config["image_mean"] if normalise else _ZEROS),
        std=_triple(config["image_std"] if normalise else _ONES),
    )


def _from_timm(config: dict[str, Any]) -> Preprocess:
    channels, height, width = config["input_size"]
    if channels != 3:
        raise ValueError(f"expected 3 input channels, got {channels}")
    if config.get("crop_mode", "center") != "center":
        raise ValueError(f"expected crop_mode 'center', got {config['crop_mode']!r}")
    crop = _square(height, width)
    return Preprocess(
        resize=math.floor(crop / config.get("crop_pct", 0.875)),
        crop=crop,
        interpolation=_interpolation(config.get("interpolation", "bicubic")),
        crop_rounding="half_even",
        mean=_triple(config.get("mean", _ZEROS)),
        std=_triple(config.get("std", _ONES)),
    )


def _interpolation(name: str) -> Interpolation:
    for known in get_args(Interpolation):
        if known == name.lower():
            return known
    raise ValueError(f"expected a filter of {', '.join(get_args(Interpolation))}, got {name!r}")


def _square(height: int, width: int) -> int:
    if height != width:
        raise ValueError(f"expected a square crop, got {height} x {width}")
    return int(height)


def _triple(values: list[float]) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue

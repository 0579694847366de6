"""``mobilevit classify``: the most probable classes of images under a checkpoint."""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.images import open_image
from mobilevit_kernels.cli.labels import class_names
from mobilevit_kernels.cli.preprocess import ChannelOrder, Preprocess, default_preprocess
from mobilevit_kernels.cli.sidecar import sidecar_preprocess
from mobilevit_kernels.cli.weights import LoadedModel, load_model


def run(args: argparse.Namespace) -> int:
    """Classifies each image; returns 1 if one could not be read, after the others are done, else 0."""
    loaded = load_model(args.weights, args.model)
    preprocess = choose_preprocess(args.weights, loaded, args.size, args.channel_order)
    names = class_names(loaded.num_classes, args.labels, args.weights)
    print(f"{loaded.name}, {loaded.checkpoint_format} weights; {preprocess.describe()}")
    failures = 0
    for path in args.images:
        try:
            image = preprocess(open_image(path))
        except UserError as error:
            failures += 1
            message = str(error)
            named = message if str(path) in message else f"{path}: {message}"
            print(f"mobilevit: error: {named}", file=sys.stderr)
            continue
        print(path)
        for line in topk_lines(loaded.model, image, args.topk, names):
            print(line)
    return 1 if failures else 0


def choose_preprocess(
    weights: Path, loaded: LoadedModel, size: int | None = None, channel_order: ChannelOrder | None = None
) -> Preprocess:
    """The transform for a checkpoint: from the file beside it, else its library's; then what the user overrides.

    Args:
        weights: the checkpoint's file.
        loaded: what was recognised in it.
        size: side of the input in pixels; the resize follows as the library's rule says.
        channel_order: "rgb" or "bgr".

    Raises:
        UserError: the file beside the weights asks for what is not supported.
    """
    default = default_preprocess(loaded.checkpoint_format, loaded.name, size or 256)
    preprocess = sidecar_preprocess(weights, loaded.checkpoint_format) or default
    if size is not None:
        preprocess = replace(preprocess, resize=default.resize, crop=default.crop)
    return replace(preprocess, channel_order=channel_order) if channel_order else preprocess


def topk_lines(model: torch.nn.Module, image: Tensor, topk: int, names: dict[int, str]) -> list[str]:
    """Probability, index and name of the most probable classes.

    Args:
        model: in eval mode.
        image: ``[3, H, W]``.
        topk: lines wanted; fewer where the model has fewer classes.
        names: index -> name; empty where unknown.
    """
    with torch.inference_mode():
        probabilities = (
            model(image[None].contiguous(memory_format=torch.channels_last))[0].float().softmax(-1)
        )
    values, indices = probabilities.topk(min(topk, len(probabilities)))
    return [
        f"  {value:7.2%}  {index:>5}  {names.get(index, f'class {index}')}"
        for value, index in zip(values.tolist(), indices.tolist(), strict=True)
    ]

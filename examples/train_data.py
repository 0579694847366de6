"""The data of train.py: scikit-learn's handwritten digits, or folders of images."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Subset

from mobilevit_kernels.cli.preprocess import Preprocess
from mobilevit_kernels.data import SizedDataset

DIGITS = "digits"
Samples = Any  # gives (PIL image, label) by index
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Data:
    """Images to learn from and images held out.

    Attributes:
        train: takes (height, width, index), gives (augmented image ``[3, H, W]`` in [0, 1], label).
        held_out: the same, prepared as ``mobilevit classify`` prepares its images.
        classes: names.
        evaluation: timm's name -> value of that preparation, for the config.json beside the weights.
        mix: (images, labels) -> (images, labels or shares of the classes) of a batch.
    """

    train: SizedDataset
    held_out: SizedDataset
    classes: list[str]
    evaluation: dict[str, Any]
    mix: Mix


def load_data(args: argparse.Namespace, strong: bool, interpolation: str, crop: float) -> Data:
    """Reads "digits", or a folder with "train" and "val", each with a folder per class.

    Args:
        args: of train.py: data, size, seed and limit.
        strong: RandAugment, random erasing, MixUp or CutMix; not for digits.
        interpolation: "bilinear" or "bicubic", of every resize of a folder's images.
        crop: side of the evaluation's crop over the resized short side, of a folder's images.

    Raises:
        SystemExit: a package or the folder is missing.
    """
    if args.data == DIGITS:
        train, held_out, classes = read_digits()
        interpolation, crop = "bilinear", 1.0
        augment, mix = augment_digit, keep_batch
    else:
        train, held_out, classes = read_folder(Path(args.data))
        augment = PhotoAugmentation(strong, interpolation)
        mix = mixing(len(classes)) if strong else keep_batch
    if args.limit:
        train, held_out = (Subset(part, range(min(args.limit, len(part)))) for part in (train, held_out))
    prepare = Preprocess(int(args.size / crop), args.size, interpolation, crop_rounding="half_even")
    evaluation = {
        "input_size": [3, args.size, args.size],
        "interpolation": interpolation,
        "crop_pct": crop,
        "mean": 3 * [0.0],
        "std": 3 * [1.0],
    }
    return Data(
        SizedDataset(train, augment, args.seed),
        SizedDataset(held_out, partial(prepared, prepare)),
        classes,
        evaluation,
        mix,
    )


def prepared(prepare: Preprocess, image: Image.Image, _: tuple[int, int]) -> Tensor:
    return prepare(image)


def keep_batch(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return images, labels


def read_digits() -> tuple[Samples, Samples, list[str]]:
    """1797 handwritten digits of 8 x 8 pixels, a fifth of them held out: the same whatever the seed of the run."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("--data digits needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    samples = [
        (Image.fromarray(image).convert("RGB"), int(label))
        for image, label in zip(grey, digits.target, strict=True)
    ]
    order = np.random.default_rng(0).permutation(len(samples))
    first = len(samples) // 5
    return (
        [samples[i] for i in order[first:]],
        [samples[i] for i in order[:first]],
        [str(name) for name in digits.target_names],
    )


def augment_digit(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """Turned by up to 15 degrees, scaled and shifted by up to 15 %, upscaled to ``size``; never mirrored."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1)[None] / 255
    angle, scale, right, down = (2 * torch.rand(4) - 1).mul(torch.tensor([0.26, 0.15, 0.15, 0.15])).unbind()
    cos, sin = angle.cos() * (1 + scale), angle.sin() * (1 + scale)
    matrix = torch.stack([torch.stack([cos, -sin, right]), torch.stack([sin, cos, down])])[None]
    grid = F.affine_grid(matrix, [1, 3, *size], align_corners=False)
    return F.grid_sample(pixels, grid, align_corners=False)[0]


def import_torchvision() -> Any:
    """torchvision's transforms, or the reason why there are none."""
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:
        raise SystemExit(f"folders of images need a torchvision that fits this torch: {error}") from error
    return v2


def read_folder(folder: Path) -> tuple[Samples, Samples, list[str]]:
    """torchvision's ImageFolder of FOLDER/train and FOLDER/val."""
    import_torchvision()
    from torchvision.datasets import ImageFolder

    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise SystemExit(
                f"--data: expected {DIGITS!r} or a folder with train and val, found no {folder / part}"
            )
    train, held_out = ImageFolder(folder / "train"), ImageFolder(folder / "val")
    if train.classes != held_out.classes:
        raise SystemExit(f"--data: expected the same classes in train and val of {folder}")
    return train, held_out, train.classes


class PhotoAugmentation:
    """Random crop and flip; where strong also RandAugment and random erasing.

    Args:
        strong: RandAugment with 2 operations of magnitude 9, and erasing with probability 1/4.
        interpolation: "bilinear" or "bicubic".
    """

    def __init__(self, strong: bool, interpolation: str) -> None:
        self.strong = strong
        self.interpolation = interpolation
        self.of_size = lru_cache(self.make)

    def __reduce__(self) -> tuple[Any, ...]:
        return PhotoAugmentation, (self.strong, self.interpolation)

    def make(self, size: tuple[int, int]) -> nn.Module:
        """The transform of one size."""
        v2 = import_torchvision()
        filtered = v2.InterpolationMode(self.interpolation)
        return v2.Compose(
            [
                v2.RandomResizedCrop(size, interpolation=filtered),
                v2.RandomHorizontalFlip(),
                *([v2.RandAugment(2, 9)] if self.strong else []),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                *([v2.RandomErasing(0.25)] if self.strong else []),
                v2.ToPureTensor(),
            ]
        )

    def __call__(self, image: Image.Image, size: tuple[int, int]) -> Tensor:
        return self.of_size(size)(image)


def mixing(num_classes: int) -> Mix:
    """MixUp or CutMix, one of the two on each batch."""
    v2 = import_torchvision()
    return v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=num_classes), v2.CutMix(num_classes=num_classes)])

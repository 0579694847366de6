"""``mobilevit demo``: the fused and the plain path on the same weights and real photographs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from mobilevit_kernels.cli.classify import choose_preprocess, topk_lines
from mobilevit_kernels.cli.comparison import TOLERANCE, Comparison, compare, fused_backend, randomize
from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.labels import IMAGENET_CLASSES, class_names
from mobilevit_kernels.cli.main import DEMO_MODELS
from mobilevit_kernels.cli.photos import sample_photos
from mobilevit_kernels.cli.picture import Page, save_picture
from mobilevit_kernels.cli.preprocess import Preprocess, default_preprocess
from mobilevit_kernels.cli.scores import ScoreMaps, score_maps
from mobilevit_kernels.cli.weights import check_model_name, load_model
from mobilevit_kernels.models import create_model

DEFAULT_SIZE = 256
PICTURE_NAME = "demo.png"


class Subject(NamedTuple):
    """A model to compare, ready to run, and the transform of its images."""

    name: str
    model: nn.Module
    preprocess: Preprocess
    num_classes: int


def run(args: argparse.Namespace) -> int:
    """Compares, prints and draws; returns 1 where a model's two paths disagree, else 0."""
    for name in args.models or ():
        check_model_name(name)
    if args.labels and not args.weights:
        raise UserError("--labels names the classes of --weights, and no weights were given")
    output = prepare_folder(args.output)
    backend = fused_backend()
    threads = torch.get_num_threads()
    torch.set_num_threads(args.threads or threads)
    try:
        return _run(args, output, backend)
    finally:
        torch.set_num_threads(threads)


def _run(args: argparse.Namespace, output: Path, backend: str) -> int:
    photos = sample_photos()
    subjects = weights_subject(args) if args.weights else random_subjects(args, photos)
    names = class_names(subjects[0].num_classes, args.labels, args.weights) if args.weights else {}
    compared = print_header(args, subjects[0].preprocess, photos, backend)
    comparisons, maps, maps_title = compare_all(subjects, photos, args.repeats)
    if args.weights:
        print_classes(subjects[0], photos, names)
    page = Page("MobileViT on real photographs", compared, maps_title if maps is not None else None)
    seen = {name: subjects[0].preprocess.crop_image(photo) for name, photo in photos.items()}
    picture = output / PICTURE_NAME
    try:
        save_picture(picture, page, seen, comparisons, maps)
    except OSError as error:
        raise UserError(f"{picture}: cannot write the picture ({error.strerror or error})") from error
    print(f"\nPicture:     {picture}")
    return 0 if all(comparison.passed for comparison in comparisons) else 1


def print_header(
    args: argparse.Namespace, preprocess: Preprocess, photos: dict[str, Image.Image], backend: str
) -> str:
    """Prints what is compared and on what; returns it as the picture's subtitle."""
    threads = torch.get_num_threads()
    paths = f"attention on the {backend!r} kernels against the plain PyTorch definition"
    machine = f"float32, channels_last, {threads} thread{'s' if threads > 1 else ''}"
    random_weights = "random, seeded; BatchNorm statistics are those of the photographs; classes mean nothing"
    print(f"Compared:    {paths}; same network, same weights, {machine}")
    print(f"Weights:     {args.weights or random_weights}")
    print(f"Photographs: {', '.join(photos)}; {preprocess.describe()}")
    print(f"Time:        one photograph, whole model, both paths in turn, median of {args.repeats}\n")
    origin = f"weights of {args.weights.name}" if args.weights else "random weights"
    return f"{paths}; {origin}; {machine}"


def prepare_folder(folder: Path) -> Path:
    """Makes the output folder.

    Raises:
        UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror})") from error
    return folder


def random_subjects(args: argparse.Namespace, photos: dict[str, Image.Image]) -> list[Subject]:
    """The models of ``--models`` under seeded random weights, all on the same images."""
    preprocess = default_preprocess("timm", "mobilevit_s", args.size or DEFAULT_SIZE)
    subjects = []
    for name in args.models or DEMO_MODELS:
        model = create_model(name, num_classes=IMAGENET_CLASSES)
        randomize(model, stack(preprocess, photos))
        subjects.append(Subject(name, model, preprocess, IMAGENET_CLASSES))
    return subjects


def weights_subject(args: argparse.Namespace) -> list[Subject]:
    """The model of ``--weights``."""
    loaded = load_model(args.weights)
    preprocess = choose_preprocess(args.weights, loaded, args.size)
    return [Subject(loaded.name, loaded.model, preprocess, loaded.num_classes)]


def stack(preprocess: Preprocess, photos: dict[str, Image.Image]) -> Tensor:
    """Returns the photographs as one batch ``[B, 3, H, W]``."""
    return torch.stack([preprocess(photo) for photo in photos.values()])


def compare_all(
    subjects: Sequence[Subject], photos: dict[str, Image.Image], repeats: int
) -> tuple[list[Comparison], ScoreMaps | None, str]:
    """Compares each model and prints its row; also returns the first attention maps found, and what they are."""
    print(
        f"{'model':<20}{'largest logit':>14}{'difference':>12}{'relative':>10}{'fused':>11}{'plain':>11}{'ratio':>8}"
    )
    comparisons: list[Comparison] = []
    maps, title = None, ""
    for subject in subjects:
        images = stack(subject.preprocess, photos)
        comparison = compare(subject.name, subject.model, images, repeats)
        print(row(comparison))
        comparisons.append(comparison)
        if maps is None and (found := score_maps(subject.model, images)) is not None:
            maps, title = found, f"Where separable attention of {subject.name} looks: scores of {found.layer}"
    print(f"Passes where the difference is at most {TOLERANCE:.0e} of the largest logit.")
    return comparisons, maps, title


def row(comparison: Comparison) -> str:
    """One line of the table."""
    return (
        f"{comparison.model_name:<20}{comparison.largest_logit:>14.3f}{comparison.differences.max().item():>12.1e}"
        f"{comparison.relative_difference:>10.1e}{comparison.fused_ms:>8.1f} ms{comparison.plain_ms:>8.1f} ms"
        f"{comparison.speedup:>7.2f}x  {'PASS' if comparison.passed else 'FAIL'}"
    )


def print_classes(subject: Subject, photos: dict[str, Image.Image], names: dict[int, str]) -> None:
    """Prints the five most probable classes of each photograph; ``names`` is index -> class name."""
    for photo_name, photo in photos.items():
        print(f"\n{photo_name}")
        for line in topk_lines(subject.model, subject.preprocess(photo), 5, names):
            print(line)

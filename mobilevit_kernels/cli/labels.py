"""Class names: from the user's file, from beside the weights, or, for ImageNet-1k, from an installed timm."""

import importlib.util
import json
from pathlib import Path

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.cli.sidecar import sidecar_labels

IMAGENET_CLASSES = 1000


def class_names(num_classes: int, labels: Path | None, weights: Path) -> dict[int, str]:
    """Finds the name of each class.

    Args:
        num_classes: outputs of the model.
        labels: the user's file: one name a line, or a JSON list, or a JSON object {index: name}.
        weights: the checkpoint; a config.json beside it may hold names.

    Returns:
        Index -> name; empty where none are known.

    Raises:
        UserError: the file cannot be read, or names another number of classes than the model has.
    """
    if labels is not None:
        names = read_labels(labels)
        if len(names) != num_classes:
            raise UserError(
                f"{labels}: expected {num_classes} class names as the model has, got {len(names)}"
            )
        return names
    beside = sidecar_labels(weights)
    if beside is not None and len(beside) == num_classes:
        return beside
    return imagenet_names() if num_classes == IMAGENET_CLASSES else {}


def read_labels(path: Path) -> dict[int, str]:
    """Reads a file of class names; see :func:`class_names` for its forms.

    Raises:
        UserError: the file is missing, no text, or a JSON of another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return dict(enumerate(line.strip() for line in text.rstrip().splitlines()))
        content = json.loads(text)
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {int(index): str(name) for index, name in pairs}
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path}: expected one class name a line, or a JSON list or {{index: name}} ({error})"
        ) from error


def imagenet_names() -> dict[int, str]:
    """WordNet's names of the 1000 ImageNet classes, in the files of an installed timm; empty without one.

    timm itself is not imported: that takes seconds, and its torchvision may not fit the installed torch.
    """
    timm = importlib.util.find_spec("timm")
    if timm is None or timm.origin is None:
        return {}
    folder = Path(timm.origin).parent / "data" / "_info"
    try:
        synsets = (folder / "imagenet_synsets.txt").read_text(encoding="utf-8").split()
        lines = (folder / "imagenet_synset_to_lemma.txt").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    lemmas = dict(line.split("\t", 1) for line in lines)
    return {index: lemmas.get(synset, synset) for index, synset in enumerate(synsets)}

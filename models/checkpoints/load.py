"""Loads a checkpoint of any supported naming into a model, all of it or nothing."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.checkpoints.canonical import Canonical, plain_name, to_canonical
from mobilevit_kernels.models.checkpoints.files import PathLike, read_weights
from mobilevit_kernels.models.checkpoints.report import CheckpointMismatch, LoadReport
from mobilevit_kernels.models.checkpoints.unwrap import Weights, unwrap
from mobilevit_kernels.models.checkpoints.variants import family_of, fitting_models

_COUNTER = "num_batches_tracked"
_CLASSIFIER = "head.fc."
_PARTS = ("stem.", *(f"stages.{stage}." for stage in range(5)), "final_conv.", _CLASSIFIER)
_SHOWN = 5


def load_checkpoint(
    model: nn.Module, path_or_state_dict: PathLike | Mapping[str, Tensor], strict: bool = True
) -> LoadReport:
    """Loads weights in the names of timm, cvnets, transformers or the official MobileViTv3 into a model.

    Everything is checked before the first tensor is written: a load that fails leaves the model as it was. The model
    keeps its dtype and device. ``num_batches_tracked`` may be missing. Heads of segmentation and detection, and
    what follows the last layer of a model without classifier (or of a feature extractor), are left out and reported.

    Args:
        model: model with timm's names, as ``create_model`` builds; may be wrapped (DistributedDataParallel, compiled).
        path_or_state_dict: a file that ``read_checkpoint`` takes, or what ``torch.load`` returned for one.
        strict: False loads the tensors that fit, keeps the model's own for the rest, and reports these.

    Returns:
        What was loaded and what was not.

    Raises:
        CheckpointMismatch: (a RuntimeError) tensors are missing, unexpected or of another shape and ``strict`` is set,
            or not one tensor fits.
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or holds no MobileViT, or the model is on the meta device.
    """
    source, weights = read_source(path_or_state_dict)
    try:
        checkpoint = to_canonical(weights.state_dict)
    except ValueError as error:
        raise ValueError(f"{source}: holds no MobileViT; {error}") from error
    return load_canonical(model, checkpoint, source, weights.container, strict)


def load_canonical(
    model: nn.Module, checkpoint: Canonical, source: str, container: str | None, strict: bool = True
) -> LoadReport:
    """Loads what ``to_canonical`` returned, as ``load_checkpoint`` does.

    Args:
        model: as for ``load_checkpoint``.
        checkpoint: the weights.
        source: where they come from, for the report and for messages.
        container: entry of a training checkpoint that held them, if any.
        strict: as for ``load_checkpoint``.

    Raises:
        CheckpointMismatch, ValueError: as ``load_checkpoint``.
    """
    targets = {plain_name(key): (key, tensor) for key, tensor in model.state_dict().items()}
    expected = {name: tensor for name, (_, tensor) in targets.items()}
    _check_has_data(expected)
    _check_values(expected, checkpoint.state_dict, source)
    report = _compare(expected, checkpoint, source, container)
    if (strict and not report.complete) or not report.loaded:
        raise CheckpointMismatch(_message(model, expected, report), report)
    # load_state_dict copies, so it keeps the dtype, device and memory format of the model.
    model.load_state_dict(
        {targets[name][0]: checkpoint.state_dict[name] for name in report.loaded}, strict=False
    )
    return report


def read_source(path_or_state_dict: PathLike | Mapping[str, Tensor]) -> tuple[str, Weights]:
    """The name of a file, or "state_dict", and the weights in it."""
    if isinstance(path_or_state_dict, Mapping):
        return "state_dict", unwrap(path_or_state_dict, "state_dict")
    return str(path_or_state_dict), read_weights(path_or_state_dict)


def _check_has_data(expected: Mapping[str, Tensor]) -> None:
    name = next((name for name, tensor in expected.items() if tensor.is_meta), None)
    if name is not None:
        raise ValueError(
            f"model: {name} is on the meta device and has no data; call model.to_empty(device) first"
        )


def _check_values(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors that cannot be copied, or only with a loss, into the model's."""
    for name, tensor in given.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = "on the meta device" if tensor.is_meta else f"{tensor.layout}, {tensor.dtype}"
            raise ValueError(f"{source}: expected {name} as a dense tensor with data, it is {kind}")
        wanted = expected[name].dtype if name in expected else tensor.dtype
        if tensor.is_complex() or (wanted.is_floating_point and not tensor.is_floating_point()):
            raise ValueError(f"{source}: expected {name} in a floating-point dtype, got {tensor.dtype}")


def _compare(
    expected: Mapping[str, Tensor], checkpoint: Canonical, source: str, container: str | None
) -> LoadReport:
    given = checkpoint.state_dict
    cut_off = _parts_after(expected)
    unused = [name for name in given if name not in expected and not name.endswith(_COUNTER)]
    dropped = [name for name in unused if name.startswith(cut_off)]
    shared = [name for name in expected if name in given]
    mismatched = [name for name in shared if expected[name].shape != given[name].shape]
    names = fitting_models(checkpoint)
    return LoadReport(
        source=source,
        container=container,
        format=checkpoint.format,
        family=family_of(checkpoint),
        model_name=names[0] if len(names) == 1 else None,
        loaded=tuple(name for name in shared if name not in mismatched),
        missing=tuple(name for name in expected if name not in given and not name.endswith(_COUNTER)),
        unexpected=(*(name for name in unused if name not in dropped), *checkpoint.unknown),
        mismatched=tuple(
            (name, tuple(expected[name].shape), tuple(given[name].shape)) for name in mismatched
        ),
        dropped=(*dropped, *checkpoint.task_head),
    )


def _parts_after(names: Iterable[str]) -> tuple[str, ...]:
    """Prefixes of the parts that follow the model's last one: what num_classes=0 or a feature extractor cuts off."""
    last = max((_PARTS.index(part) for name in names for part in _PARTS if name.startswith(part)), default=-1)
    return _PARTS[last + 1 :] if last >= 0 else ()


def _message(model: nn.Module, expected: Mapping[str, Tensor], report: LoadReport) -> str:
    """Says what does not fit; the full lists, unless the checkpoint is plainly for another model."""
    ours = _model_name(expected)
    title = f"{report.source}: does not fit {ours or type(model).__name__}; the model was not changed"
    other = report.model_name is not None and ours is not None and report.model_name != ours
    if other:
        hint = f"the checkpoint is for {report.model_name}: load it into create_model({report.model_name!r})"
        return "\n".join([title, *report.problems(limit=_SHOWN), hint])
    return "\n".join([title, *report.problems(), *_hints(expected, report)])


def _model_name(expected: Mapping[str, Tensor]) -> str | None:
    try:
        names = fitting_models(to_canonical(expected))
    except ValueError:
        return None
    return names[0] if len(names) == 1 else None


def _hints(expected: Mapping[str, Tensor], report: LoadReport) -> list[str]:
    """Advice for the usual cases: another number of classes or input channels, or a backbone alone."""
    hints = []
    shapes = {name: (ours, theirs) for name, ours, theirs in report.mismatched}
    if f"{_CLASSIFIER}weight" in shapes:
        ours, theirs = shapes[f"{_CLASSIFIER}weight"]
        hints.append(
            f"the checkpoint has {theirs[0]} classes, the model {ours[0]}: create the model with "
            f"num_classes={theirs[0]}, or pass strict=False to keep its own classifier"
        )
    if f"{_CLASSIFIER}weight" in report.missing:
        hints.append(
            "the checkpoint has no classifier: create the model with num_classes=0 (with features_only=True if the "
            "final convolution is missing too), or pass strict=False to keep the model's own"
        )
    if "stem.conv.weight" in shapes:
        ours, theirs = shapes["stem.conv.weight"]
        hints.append(f"the checkpoint takes {theirs[1]} input channels, the model {ours[1]}")
    return hints

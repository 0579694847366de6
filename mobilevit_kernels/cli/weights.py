"""From a checkpoint file to a model that is ready to run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mobilevit_kernels.cli.errors import UserError
from mobilevit_kernels.models import create_model, list_models
from mobilevit_kernels.models.checkpoints import (
    convert_state_dict,
    detect_format,
    infer_model_name,
    load_checkpoint,
    read_checkpoint,
)

# What the checkpoint functions raise for a file that is missing, corrupt, foreign or of another model.
CHECKPOINT_ERRORS = (OSError, ValueError, RuntimeError, KeyError)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, and what was recognised in the file.

    Args:
        model: in eval mode, on the CPU, its weights in channels_last memory.
        name: a name of ``list_models``.
        checkpoint_format: "timm", "cvnets" or "hf".
        num_classes: outputs of the classifier.
    """

    model: nn.Module
    name: str
    checkpoint_format: str
    num_classes: int


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], str]:
    """Reads a checkpoint's tensors and recognises their key names.

    Returns:
        The state dict as it lies in the file, and "timm", "cvnets" or "hf".

    Raises:
        UserError: missing, corrupt, truncated, or no MobileViT; the message names the file.
    """
    try:
        state_dict = read_checkpoint(path)
        return state_dict, detect_format(state_dict)
    except CHECKPOINT_ERRORS as error:
        raise UserError(checkpoint_message(path, error)) from error


def load_model(path: Path, name: str | None = None) -> LoadedModel:
    """Builds the model of a checkpoint and loads it.

    Args:
        path: timm, cvnets, Hugging Face or official v3 weights.
        name: a name of ``list_models``; inferred from the weights by default.

    Raises:
        UserError: the file cannot be read, is no MobileViT classifier for RGB images, or is not the model ``name``.
    """
    if name is not None:
        check_model_name(name)
    state_dict, checkpoint_format = read_state_dict(path)
    try:
        timm_state = convert_state_dict(state_dict, "timm")
        name = _matching_name(path, name, state_dict)
    except CHECKPOINT_ERRORS as error:
        raise UserError(checkpoint_message(path, error)) from error
    if "head.fc.weight" not in timm_state:
        raise UserError(f"{path}: expected a classifier, got a checkpoint without one")
    num_classes, in_chans = timm_state["head.fc.weight"].shape[0], timm_state["stem.conv.weight"].shape[1]
    if in_chans != 3:
        raise UserError(f"{path}: expected weights for images of 3 channels, got {in_chans}")
    model = create_model(name, num_classes=num_classes)
    try:
        load_checkpoint(model, timm_state)
    except CHECKPOINT_ERRORS as error:
        raise UserError(f"{path} does not fit {name}: {checkpoint_reason(error)}") from error
    # The overload is missing from torch's annotations.
    channels_last = model.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return LoadedModel(channels_last, name, checkpoint_format, num_classes)


def _matching_name(path: Path, name: str | None, state_dict: dict[str, Tensor]) -> str:
    try:
        inferred = infer_model_name(state_dict)
    except ValueError:
        if name is None:
            raise
        return name  # loading says what does not fit
    if name not in (None, inferred):
        raise UserError(f"{path}: expected weights of {name}, got weights of {inferred}")
    return inferred


def check_model_name(name: str) -> None:
    """Raises UserError unless ``name`` is one of ``list_models``."""
    if name not in list_models():
        raise UserError(f"unknown model {name!r}; expected one of {', '.join(list_models())}")


def checkpoint_message(path: Path, error: Exception) -> str:
    """One line that names the file and says what is wrong with it."""
    reason = checkpoint_reason(error)
    return reason if str(path) in reason else f"{path}: {reason}"


def checkpoint_reason(error: Exception) -> str:
    """The error's message on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())

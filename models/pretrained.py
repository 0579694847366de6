"""Weights of a checkpoint for a model whose number of classes or image channels may differ from it."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

import torch
from torch import Tensor

from mobilevit_kernels.models.checkpoints.canonical import to_canonical
from mobilevit_kernels.models.checkpoints.load import load_canonical, read_source
from mobilevit_kernels.models.initialization import init_weights
from mobilevit_kernels.models.mobilevit import MobileViT

_STEM = "stem.conv.weight"
_CLASSIFIER = ("head.fc.weight", "head.fc.bias")


def load_pretrained(model: MobileViT, checkpoint: str | PathLike[str] | Mapping[str, Tensor]) -> None:
    """Loads a checkpoint into a fresh model, in place; all or nothing.

    As timm does for pretrained weights: where the number of classes differs the classifier stays fresh (and a
    UserWarning says so, unless the model has none); where the image channels differ the stem is adapted.

    Args:
        model: a model just built; its weights need no values yet.
        checkpoint: a file or a state dict that ``load_checkpoint`` takes.

    Raises:
        ValueError, RuntimeError, FileNotFoundError: as ``load_checkpoint``.
    """
    source, weights = read_source(checkpoint)
    try:
        canonical = to_canonical(weights.state_dict)
    except ValueError as error:
        raise ValueError(f"checkpoint: {error}") from error
    adapted = _with_own_classifier(model, _with_stem_for(model, canonical.state_dict))
    load_canonical(model, replace(canonical, state_dict=adapted), source, weights.container)


def adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Makes the weight of an RGB stem fit other images, as timm does.

    Args:
        weight: ``[C, 3, k, k]``.
        in_chans: channels of the images.

    Returns:
        ``[C, in_chans, k, k]``: for one channel the sum over RGB, so that grey images give the same activations;
        else RGB repeated and scaled by 3 / in_chans.
    """
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    repeated = torch.cat([weight] * math.ceil(in_chans / 3), dim=1)[:, :in_chans]
    return repeated * (3.0 / in_chans)


def _with_stem_for(model: MobileViT, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state dict, with an RGB stem adapted if the model takes other images."""
    stem = state_dict.get(_STEM)
    if stem is None or stem.dim() != 4 or stem.shape[1] != 3 or model.in_chans == 3:
        return state_dict
    return {**state_dict, _STEM: adapt_stem(stem, model.in_chans)}


def _with_own_classifier(model: MobileViT, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state dict, with the model's classifier if the checkpoint has another number of classes or none."""
    weight = state_dict.get(_CLASSIFIER[0])
    num_classes = 0 if weight is None else weight.shape[0]
    if model.num_classes in (0, num_classes):
        return state_dict
    warnings.warn(
        f"the checkpoint has {num_classes} classes and the model num_classes={model.num_classes}: the classifier "
        "keeps its fresh weights",
        stacklevel=4,
    )
    model.head.fc.apply(init_weights)
    own = model.state_dict()
    return {**state_dict, **{key: own[key] for key in _CLASSIFIER}}

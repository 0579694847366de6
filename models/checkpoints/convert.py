"""Conversion of checkpoints between the names of timm, cvnets and transformers."""

import warnings
from collections.abc import Mapping
from typing import get_args

from torch import Tensor

from mobilevit_kernels.models.checkpoints.canonical import from_canonical, to_canonical
from mobilevit_kernels.models.checkpoints.key_tables import FORMATS, Format
from mobilevit_kernels.models.checkpoints.variants import family_of


def detect_format(state_dict: Mapping[str, Tensor]) -> Format:
    """Says whose names a state dict has.

    Returns:
        "timm", "cvnets" (Apple's code and the official MobileViTv3) or "hf" (transformers, with or without the
        "mobilevit." or "mobilevitv2." prefix).

    Raises:
        ValueError: these are not the names of a MobileViT.
    """
    return to_canonical(state_dict).format


def convert_state_dict(state_dict: Mapping[str, Tensor], to: Format) -> dict[str, Tensor]:
    """Renames a checkpoint of any supported naming; values do not change, and mostly share memory with the source.

    transformers keeps query, key and value of v1 apart: they are split, or joined, by rows. Segmentation and
    detection heads are left out with a warning. Weights that were trained on BGR images (cvnets' v1) stay so.

    Args:
        state_dict: checkpoint of a MobileViT in the names of timm, cvnets or transformers.
        to: "timm", "cvnets" or "hf". The result has the names of a classifier; for MobileViTv3, "timm" means the same
            names that ``create_model`` uses, and "cvnets" the official ones.

    Raises:
        ValueError: not a MobileViT, tensors that no rule names, an unknown target, or MobileViTv3 to "hf".
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(get_args(Format))}, got {to!r}")
    checkpoint = to_canonical(state_dict)
    family = family_of(checkpoint)
    if to == "hf" and family in ("v3-v1", "v3-v2"):
        raise ValueError(
            "to: transformers has no MobileViTv3; expected 'timm' or 'cvnets' for this checkpoint"
        )
    converted, unknown = from_canonical(checkpoint, to)
    if unknown:
        raise ValueError(
            f"state_dict: no {to} name is known for {len(unknown)} tensors: {', '.join(unknown)}"
        )
    if checkpoint.task_head:
        warnings.warn(
            f"left out {len(checkpoint.task_head)} tensors of a segmentation or detection head, "
            f"such as {checkpoint.task_head[0]}",
            stacklevel=2,
        )
    return converted

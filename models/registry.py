"""Models by name."""

import contextlib
import difflib
import fnmatch
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn

from mobilevit_kernels.models.configs import CONFIGS
from mobilevit_kernels.models.features import FeatureExtractor
from mobilevit_kernels.models.initialization import NoRandomWeights
from mobilevit_kernels.models.mobilevit import MobileViT
from mobilevit_kernels.models.pretrained import load_pretrained


def list_models(pattern: str | None = None) -> list[str]:
    """Returns the names that :func:`create_model` knows, sorted.

    Args:
        pattern: shell-style wildcard such as ``"mobilevitv2_*"``; all names by default.
    """
    names = sorted(CONFIGS)
    return names if pattern is None else fnmatch.filter(names, pattern)


def create_model(
    name: str,
    num_classes: int = 1000,
    in_chans: int = 3,
    checkpoint: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    *,
    features_only: bool = False,
    out_indices: int | Sequence[int] = (0, 1, 2, 3, 4),
    pretrained: bool = False,
    **kwargs: Any,
) -> nn.Module:
    """Builds a model, on the CPU in float32 unless torch's default device and dtype say otherwise.

    Args:
        name: one of :func:`list_models`.
        num_classes: classes; 0 leaves out the classifier.
        in_chans: channels of the images.
        checkpoint: weights to load: a file or a state dict of timm, cvnets, Hugging Face or the v3 authors.
            Where ``num_classes`` differs from the checkpoint's, everything but the classifier is loaded, the
            classifier is fresh, and a UserWarning says so (none for ``num_classes=0``). Where ``in_chans`` is not
            3, the stem is adapted as timm does: summed over RGB for 1, repeated and rescaled for others.
        features_only: returns a :class:`FeatureExtractor`, whose output is a list of maps.
        out_indices: maps to return with ``features_only``; negative indices count from the end, an int n takes
            the last n. The last of the five maps is that after the final 1x1 convolution, as in timm.
        pretrained: only False: weights are not part of this package. Pass ``checkpoint``.
        **kwargs: arguments of :class:`MobileViT`: output_stride, drop_rate, drop_path_rate, transformer_dropout,
            global_pool, img_size; and options of the MobileViT block: patch_size for all; attention ("mha",
            "linformer", "separable") and num_heads for v1 and v3 on v1; local_conv, fusion_input, fusion_kernel
            and input_residual (the ablation of MobileViTv3) for all but v2.

    Returns:
        The model in training mode, as every fresh ``nn.Module``.

    Raises:
        ValueError: unknown name (the message lists close ones), or an argument out of its range.
        TypeError: an argument that this model does not take.
        Exception: whatever :func:`load_checkpoint` raises for a checkpoint that does not fit.
    """
    if name not in CONFIGS:
        raise ValueError(_unknown_name(name))
    if pretrained:
        raise ValueError(
            "pretrained: no weights come with this package; pass checkpoint=<file or state dict>"
        )

    with contextlib.nullcontext() if checkpoint is None else NoRandomWeights():
        model = MobileViT(CONFIGS[name], 0 if features_only else num_classes, in_chans, **kwargs)
    if checkpoint is not None:
        load_pretrained(model, checkpoint)
    return FeatureExtractor(model, out_indices) if features_only else model


def _unknown_name(name: str) -> str:
    close = difflib.get_close_matches(name, CONFIGS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known names: {', '.join(sorted(CONFIGS))}"
    return f"name: unknown model {name!r}; {hint}"

"""Which model a checkpoint is for, from the shapes of its tensors."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from torch import Tensor

from mobilevit_kernels.models.checkpoints.canonical import Canonical, to_canonical

Family = Literal["v1", "v2", "v3-v1", "v3-v2"]

_BLOCK_STAGES = (2, 3, 4)


class _Variant(NamedTuple):
    """Widths and depths that tell the models of a family apart."""

    family: Family
    stem: int
    stages: tuple[int, ...]
    dims: tuple[int, ...]
    depths: tuple[int, ...] = (2, 4, 3)


def _separable(family: Family, width: int) -> _Variant:
    """v2, or v3 on v2, with its width in percent."""
    return _Variant(
        family,
        stem=32 * width // 100,
        stages=tuple(base * width // 100 for base in (64, 128, 256, 384, 512)),
        dims=tuple(base * width // 100 for base in (128, 192, 256)),
    )


_V3 = {
    "mobilevitv3_xxs": _Variant("v3-v1", 16, (16, 24, 64, 80, 128), (64, 80, 96)),
    "mobilevitv3_xs": _Variant("v3-v1", 16, (32, 48, 96, 160, 160), (96, 120, 144)),
    "mobilevitv3_s": _Variant("v3-v1", 16, (32, 64, 128, 256, 320), (144, 192, 240)),
}

_VARIANTS: dict[str, _Variant] = {
    "mobilevit_xxs": _Variant("v1", 16, (16, 24, 48, 64, 80), (64, 80, 96)),
    "mobilevit_xs": _Variant("v1", 16, (32, 48, 64, 80, 96), (96, 120, 144)),
    "mobilevit_s": _Variant("v1", 16, (32, 64, 96, 128, 160), (144, 192, 240)),
    **{f"mobilevitv2_{width:03d}": _separable("v2", width) for width in (50, 75, 100, 125, 150, 175, 200)},
    **_V3,
    **{f"{name}_fast": variant._replace(depths=(2, 2, 3)) for name, variant in _V3.items()},
    **{f"mobilevitv3_{width:03d}": _separable("v3-v2", width) for width in (50, 75, 100)},
}


def detect_family(state_dict: Mapping[str, Tensor]) -> Family:
    """Says which family of blocks a checkpoint has, in any naming.

    v1 fuses by a 3x3 convolution and v3 on v1 by a 1x1; v2 projects the d channels of its tokens back, v3 on v2 those
    and as many of the local features.

    Returns:
        "v1", "v2", "v3-v1" or "v3-v2".

    Raises:
        ValueError: not a MobileViT, or the tensors that tell the families apart are missing or of none of them.
    """
    family = family_of(to_canonical(state_dict))
    if family is None:
        raise ValueError(
            "state_dict: cannot tell the family: expected conv_fusion (v1, v3 on v1) or conv_proj and conv_1x1 (v2, "
            "v3 on v2) of a stage with shapes of one of them"
        )
    return family


def family_of(checkpoint: Canonical) -> Family | None:
    """As ``detect_family``, but None where it raises."""
    state_dict = checkpoint.state_dict
    found: set[Family | None] = {
        _mha_family(state_dict, stage)
        if checkpoint.generation == "mha"
        else _separable_family(state_dict, stage)
        for stage in _BLOCK_STAGES
    }
    found.discard(None)
    return found.pop() if len(found) == 1 else None


def _mha_family(state_dict: Mapping[str, Tensor], stage: int) -> Family | None:
    shape = _conv_shape(state_dict, f"stages.{stage}.1.conv_fusion.conv.weight")
    if shape is None:
        return None
    kernels: dict[tuple[int, ...], Family] = {(3, 3): "v1", (1, 1): "v3-v1"}
    return kernels.get(shape[2:])


def _separable_family(state_dict: Mapping[str, Tensor], stage: int) -> Family | None:
    proj = _conv_shape(state_dict, f"stages.{stage}.1.conv_proj.conv.weight")
    local = _conv_shape(state_dict, f"stages.{stage}.1.conv_1x1.weight")
    if proj is None or local is None:
        return None
    inputs: dict[int, Family] = {local[0]: "v2", 2 * local[0]: "v3-v2"}
    return inputs.get(proj[1])


def infer_model_name(state_dict: Mapping[str, Tensor]) -> str:
    """Names the model a checkpoint is for, whatever its naming, number of classes and of input channels.

    Tensors that are missing are not held against a model, as long as those there fit one model alone.

    Returns:
        A name that ``create_model`` takes, such as "mobilevitv2_125".

    Raises:
        ValueError: not a MobileViT, no variant has these widths and depths, or several do.
    """
    checkpoint = to_canonical(state_dict)
    names = fitting_models(checkpoint)
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(f"state_dict: too few tensors to tell these models apart: {', '.join(names)}")
    features = ", ".join(f"{key} {value}" for key, value in _features(checkpoint).items())
    raise ValueError(f"state_dict: no MobileViT variant has these widths and depths: {features}")


def fitting_models(checkpoint: Canonical) -> list[str]:
    """Names the models whose family, widths and depths agree with those of the tensors that are there."""
    features = _features(checkpoint)
    return [
        name for name, variant in _VARIANTS.items() if features.items() <= _variant_features(variant).items()
    ]


def _variant_features(variant: _Variant) -> dict[str, int | str]:
    features: dict[str, int | str] = {"family": variant.family, "stem": variant.stem}
    features |= {f"width of stage {stage}": width for stage, width in enumerate(variant.stages)}
    for stage, dim, depth in zip(_BLOCK_STAGES, variant.dims, variant.depths, strict=True):
        features |= {f"token dim of stage {stage}": dim, f"depth of stage {stage}": depth}
    return features


def _features(checkpoint: Canonical) -> dict[str, int | str]:
    state_dict = checkpoint.state_dict
    keys = {"stem": "stem.conv.weight"}
    keys |= {f"width of stage {stage}": f"stages.{stage}.0.conv3_1x1.conv.weight" for stage in range(5)}
    keys |= {f"token dim of stage {stage}": f"stages.{stage}.1.conv_1x1.weight" for stage in _BLOCK_STAGES}
    features: dict[str, int | str] = {}
    family = family_of(checkpoint)
    if family is not None:
        features["family"] = family
    for name, key in keys.items():
        shape = _conv_shape(state_dict, key)
        if shape is not None:
            features[name] = shape[0]
    for stage in _BLOCK_STAGES:
        prefix = f"stages.{stage}.1.transformer."
        depth = len({key[len(prefix) :].partition(".")[0] for key in state_dict if key.startswith(prefix)})
        if depth:
            features[f"depth of stage {stage}"] = depth
    return features


def _conv_shape(state_dict: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    """Shape of a convolution's weight ``[out, in / groups, kh, kw]``; None if it is missing or none."""
    weight = state_dict.get(key)
    return tuple(weight.shape) if weight is not None and weight.dim() == 4 else None

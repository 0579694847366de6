"""The common form that every operation on checkpoints works on: backbone and classifier under timm's names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mobilevit_kernels.models.checkpoints.key_rules import count_matches, rename_keys
from mobilevit_kernels.models.checkpoints.key_tables import HF_PREFIXES, Format, Generation
from mobilevit_kernels.models.checkpoints.unwrap import strip_wrappers, unwrap

_QKV = ("query", "key", "value")
_FUSED = ".attention.attention.qkv."
_CVNETS_ENCODER = "encoder."
_HF_ENCODER = "encoder.layer."
_HF_TASK_HEAD = "segmentation_head."
_SHOWN = 5


@dataclass
class Canonical:
    """A checkpoint under timm's names, for all families.

    Attributes:
        state_dict: name -> tensor; of a checkpoint in timm's names every tensor, else those that a rule names.
        format: naming the checkpoint came in.
        generation: "mha" (v1 and v3 on v1) or "separable" (v2 and v3 on v2).
        unknown: keys of the checkpoint that no rule names.
        task_head: keys of segmentation or detection heads, which are left out.
    """

    state_dict: dict[str, Tensor]
    format: Format
    generation: Generation
    unknown: list[str] = field(default_factory=list)
    task_head: list[str] = field(default_factory=list)


def plain_name(key: str) -> str:
    """The key without prefixes of wrappers, and with stages as in the full model for a feature extractor's."""
    return re.sub(r"^stages_(\d+)\.", r"stages.\1.", strip_wrappers(key))


def to_canonical(state_dict: Mapping[str, Tensor]) -> Canonical:
    """Recognises the naming of a state dict and renames it to timm's.

    Raises:
        ValueError: these are not the names of a MobileViT.
    """
    tensors = unwrap(state_dict, "state_dict").state_dict
    backbone, task_head = _split_task_head({plain_name(key): tensor for key, tensor in tensors.items()})
    source, generation = _recognise(backbone)
    if source == "timm":
        return Canonical(backbone, source, generation, task_head=task_head)
    if source == "hf":
        backbone = _merge_qkv(backbone)
    names, unknown = rename_keys(backbone, source, "timm", generation)
    return Canonical(
        {new: backbone[old] for old, new in names.items()}, source, generation, unknown, task_head
    )


def from_canonical(checkpoint: Canonical, target: Format) -> tuple[dict[str, Tensor], list[str]]:
    """Renames a checkpoint from timm's names to those of ``target``; also returns the keys that no rule names."""
    names, unknown = rename_keys(checkpoint.state_dict, "timm", target, checkpoint.generation)
    state_dict = {new: checkpoint.state_dict[old] for old, new in names.items()}
    return (_split_qkv(state_dict) if target == "hf" else state_dict), unknown + checkpoint.unknown


def _split_task_head(state_dict: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Separates the backbone, without the prefix of its model, from heads of segmentation and detection."""
    if any(key.startswith(_CVNETS_ENCODER) and not key.startswith(_HF_ENCODER) for key in state_dict):
        prefixes: tuple[str, ...] = (_CVNETS_ENCODER,)
        task_head = [key for key in state_dict if not key.startswith(_CVNETS_ENCODER)]
    else:
        prefixes = tuple(HF_PREFIXES.values())
        task_head = [key for key in state_dict if key.startswith(_HF_TASK_HEAD)]
    left_out = set(task_head)
    backbone: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if key not in left_out:
            prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
            backbone[key.removeprefix(prefix)] = tensor
    return backbone, task_head


def _recognise(backbone: dict[str, Tensor]) -> tuple[Format, Generation]:
    """Takes the naming that names most keys; it must name more than half of them."""
    counts = count_matches(backbone)
    best = max(counts, key=counts.__getitem__)
    if 2 * counts[best] <= len(backbone):
        shown = ", ".join(list(backbone)[:_SHOWN]) or "no backbone"
        raise ValueError(
            "state_dict: expected a MobileViT in the names of timm, cvnets or transformers, "
            f"got {len(backbone)} other tensors: {shown}{', ...' if len(backbone) > _SHOWN else ''}"
        )
    return best


def _merge_qkv(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Joins query, key and value of a transformers model, rows in this order; leaves them where they do not match."""
    merged: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        names = _qkv_names(key)
        parts = [state_dict[name] for name in names if name in state_dict]
        if len(parts) < len(_QKV) or tensor.dim() == 0 or any(part.shape != tensor.shape for part in parts):
            merged[key] = tensor
        elif key == names[0]:
            merged[key.replace(".attention.attention.query.", _FUSED)] = torch.cat(parts)
    return merged


def _qkv_names(key: str) -> list[str]:
    """The three keys that make one fused tensor, of which ``key`` is one; none for other keys."""
    for name in _QKV:
        head, found, tail = key.partition(f".attention.attention.{name}.")
        if found:
            return [f"{head}.attention.attention.{other}.{tail}" for other in _QKV]
    return []


def _split_qkv(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    split: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        if _FUSED not in key:
            split[key] = tensor
            continue
        if tensor.dim() == 0 or tensor.shape[0] % len(_QKV) != 0:
            raise ValueError(
                f"state_dict: {key}: expected rows query | key | value, got {list(tensor.shape)}"
            )
        for name, part in zip(_QKV, tensor.chunk(len(_QKV)), strict=True):
            split[key.replace(_FUSED, f".attention.attention.{name}.")] = part
    return split

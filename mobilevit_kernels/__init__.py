"""Fused attention kernels and drop-in models for MobileViT v1, v2 and v3."""

from mobilevit_kernels import reference
from mobilevit_kernels.backends import current_backend, explain_backends, use_backend
from mobilevit_kernels.models import (
    CheckpointMismatch,
    LoadReport,
    accelerate,
    accelerated_modules,
    create_model,
    list_models,
    load_checkpoint,
    optimize_for_inference,
)
from mobilevit_kernels.ops import separable_attn, unfold_attn_fold

__version__ = "0.1.0"

__all__ = [
    "CheckpointMismatch",
    "LoadReport",
    "accelerate",
    "accelerated_modules",
    "create_model",
    "current_backend",
    "explain_backends",
    "list_models",
    "load_checkpoint",
    "optimize_for_inference",
    "reference",
    "separable_attn",
    "unfold_attn_fold",
    "use_backend",
]

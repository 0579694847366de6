"""Turns a model into one for inference on the CPU: folded norms, whole transformers as single ops."""

from mobilevit_kernels.models.optimize.api import optimize_for_inference

__all__ = ["optimize_for_inference"]

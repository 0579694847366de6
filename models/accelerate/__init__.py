"""Runs timm and transformers MobileViT models on this package's ops, in place."""

from mobilevit_kernels.models.accelerate.api import accelerate, accelerated_modules

__all__ = ["accelerate", "accelerated_modules"]

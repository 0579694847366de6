"""The three generations of MobileViT on the fused ops, and what works on them."""

from mobilevit_kernels.models.accelerate import accelerate, accelerated_modules
from mobilevit_kernels.models.attention import MultiHeadAttention, SeparableAttention
from mobilevit_kernels.models.block_v1 import MobileViTBlock
from mobilevit_kernels.models.block_v2 import MobileViTv2Block
from mobilevit_kernels.models.block_v3 import MobileViTv3Block, MobileViTv3SeparableBlock
from mobilevit_kernels.models.checkpoints import CheckpointMismatch, LoadReport, load_checkpoint
from mobilevit_kernels.models.features import FeatureExtractor, FeatureInfo
from mobilevit_kernels.models.linformer import LinformerAttention
from mobilevit_kernels.models.mobilevit import MobileViT
from mobilevit_kernels.models.optimize import optimize_for_inference
from mobilevit_kernels.models.registry import create_model, list_models

__all__ = [
    "CheckpointMismatch",
    "FeatureExtractor",
    "FeatureInfo",
    "LinformerAttention",
    "LoadReport",
    "MobileViT",
    "MobileViTBlock",
    "MobileViTv2Block",
    "MobileViTv3Block",
    "MobileViTv3SeparableBlock",
    "MultiHeadAttention",
    "SeparableAttention",
    "accelerate",
    "accelerated_modules",
    "create_model",
    "list_models",
    "load_checkpoint",
    "optimize_for_inference",
]

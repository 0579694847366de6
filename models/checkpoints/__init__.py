"""Checkpoints of timm, cvnets, transformers and the official MobileViTv3: reading, recognising, converting, loading."""

from mobilevit_kernels.models.checkpoints.atomic import replaced_file
from mobilevit_kernels.models.checkpoints.convert import convert_state_dict, detect_format
from mobilevit_kernels.models.checkpoints.files import read_checkpoint, save_checkpoint
from mobilevit_kernels.models.checkpoints.key_tables import Format
from mobilevit_kernels.models.checkpoints.load import load_checkpoint
from mobilevit_kernels.models.checkpoints.report import CheckpointMismatch, LoadReport
from mobilevit_kernels.models.checkpoints.variants import detect_family, infer_model_name

__all__ = [
    "CheckpointMismatch",
    "Format",
    "LoadReport",
    "convert_state_dict",
    "detect_family",
    "detect_format",
    "infer_model_name",
    "load_checkpoint",
    "read_checkpoint",
    "replaced_file",
    "save_checkpoint",
]

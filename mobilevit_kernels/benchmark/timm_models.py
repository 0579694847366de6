"""timm's models, where timm is installed."""

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor, nn


def import_timm() -> ModuleType | None:
    """Returns timm with its MobileViT module loaded, or None where it is not installed."""
    if not has_torchvision():
        return None
    try:
        importlib.import_module("timm.models.mobilevit")
    except ImportError:
        return None
    return sys.modules["timm"]


def has_torchvision() -> bool:
    """Whether torchvision, which timm and transformers import, is installed; makes it importable where it is.

    Its CUDA build does not import beside a CPU torch for want of two operators that no MobileViT calls; they are
    declared without a kernel then.
    """
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _declare_nms()
    return True


def _declare_nms() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(
                f"torchvision::{name}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor"
            )


def has_timm_model(name: str) -> bool:
    """Whether timm is installed and has a model of this name."""
    timm = import_timm()
    return timm is not None and timm.is_model(name)


def timm_model(name: str, state_dict: dict[str, Tensor]) -> nn.Module:
    """timm's model of this name with these weights; only where ``has_timm_model``."""
    timm = import_timm()
    assert timm is not None
    model = timm.create_model(name, pretrained=False)
    model.load_state_dict(state_dict)
    return model

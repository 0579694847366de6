"""What the engines of bench.startup start from: weights, programs, an image, and its true logits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mobilevit_kernels import use_backend
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.engine import missing_packages
from mobilevit_kernels.benchmark.networks import make_networks
from mobilevit_kernels.benchmark.onnxruntime_engine import export_onnx
from mobilevit_kernels.benchmark.openvino_engine import convert_network
from mobilevit_kernels.models.checkpoints import save_checkpoint

EAGER = "eager PyTorch"
ONNXRUNTIME = "ONNX Runtime"
OPENVINO = "OpenVINO"
OPENVINO_IR = "OpenVINO, own format"
_EXPORTER = ("onnx", "onnxscript")
_NEEDED = {
    ONNXRUNTIME: ("onnxruntime", *_EXPORTER),
    OPENVINO: ("openvino", *_EXPORTER),
    OPENVINO_IR: ("openvino",),
}


@dataclass(frozen=True)
class StartFiles:
    """Files of one model.

    Attributes:
        starts: engine, as tables call it -> its name in bench.startup_process, and the file that it loads.
        absent: engine -> why it cannot start here.
        image: ``.npy`` of the image ``[1, 3, H, W]``.
        truth: float64 logits ``[1, classes]`` of that image.
    """

    starts: dict[str, tuple[str, Path]]
    absent: dict[str, str]
    image: Path
    truth: Tensor


def write_files(model: str, image_side: int, folder: Path) -> StartFiles:
    """Writes everything that the engines load.

    Args:
        model: a name of ``list_models()``; its weights are random, the same for all.
        image_side: height and width of the image in pixels.
        folder: where, an existing folder.
    """
    networks = make_networks(model)
    plain = networks.plain.eval()
    image = torch.rand(1, 3, image_side, image_side)
    image_file, weights, onnx, ir = (
        folder / f"{model}{suffix}" for suffix in (".npy", ".safetensors", ".onnx", ".xml")
    )
    np.save(image_file, image.numpy())
    save_checkpoint(networks.ours.state_dict(), weights)
    starts = {
        OURS: ("ours", weights),
        EAGER: (networks.plain_backend or "timm", weights),
        ONNXRUNTIME: ("onnxruntime", onnx),
        OPENVINO: ("openvino", onnx),
        OPENVINO_IR: ("openvino", ir),
    }
    reasons = {engine: missing_packages(*packages) for engine, packages in _NEEDED.items()}
    absent = {engine: reason for engine, reason in reasons.items() if reason is not None}
    present = {engine: start for engine, start in starts.items() if engine not in absent}
    with use_backend("reference"):
        if ONNXRUNTIME in present or OPENVINO in present:
            onnx.write_bytes(export_onnx(plain, image))
        if OPENVINO_IR in present:
            _save_ir(convert_network(plain, image), ir)
        with torch.no_grad():
            truth = plain.double()(image.double())
    return StartFiles(present, absent, image_file, truth)


def _save_ir(model: Any, file: Path) -> None:
    import openvino

    # Weights in half precision, the default, would change the logits.
    openvino.save_model(model, file, compress_to_fp16=False)

"""One process of bench.startup: one engine from its import to the eleventh image.

Imports the engine's framework and no other, so that neither its time nor its memory holds anything of the others.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.resident_memory import forget_peak, peak_resident_bytes, resident_bytes

MORE_IMAGES = 10

# Images to logits, both NumPy arrays.
Run = Callable[[Any], Any]


@dataclass(frozen=True)
class Start:
    """How an engine starts.

    Attributes:
        framework: imports what does not count as memory.
        package: a module to import besides, which does; empty for none.
        load: (model name, file, threads) -> what runs an image.
    """

    framework: Callable[[], Any]
    load: Callable[[str, Path, int], Run]
    package: str = ""


def _importing(*modules: str) -> Callable[[], Any]:
    return lambda: [importlib.import_module(module) for module in modules]


def _import_timm() -> None:
    importlib.import_module("torch")
    try:
        importlib.import_module("timm")
    except RuntimeError:  # a torchvision of another torch
        importlib.import_module("mobilevit_kernels.benchmark.timm_models").import_timm()


def _torch_run(network: Callable[[Any], Any]) -> Run:
    import torch

    def run(image: Any) -> Any:
        with torch.inference_mode():
            return network(torch.from_numpy(image)).numpy()

    return run


def _load_ours(name: str, file: Path, threads: int) -> Run:
    import torch

    import mobilevit_kernels

    torch.set_num_threads(threads)
    model = mobilevit_kernels.create_model(name, checkpoint=file)
    return _torch_run(mobilevit_kernels.optimize_for_inference(model))


def _load_reference(name: str, file: Path, threads: int) -> Run:
    import torch

    import mobilevit_kernels

    torch.set_num_threads(threads)
    mobilevit_kernels.use_backend("reference")
    return _torch_run(mobilevit_kernels.create_model(name, checkpoint=file).eval())


def _load_timm(name: str, file: Path, threads: int) -> Run:
    import timm
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    model = timm.create_model(name)
    model.load_state_dict(load_file(file))
    return _torch_run(model.eval())


def _load_onnxruntime(name: str, file: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (node,) = session.get_inputs()
    return lambda image: session.run(None, {node.name: image})[0]


def _load_openvino(name: str, file: Path, threads: int) -> Run:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(file, "CPU", options).create_infer_request()
    return lambda image: request.infer([image])[0]


STARTS = {
    "ours": Start(_importing("torch"), _load_ours, package="mobilevit_kernels"),
    "timm": Start(_import_timm, _load_timm),
    "reference": Start(_importing("torch", "mobilevit_kernels"), _load_reference),
    "onnxruntime": Start(_importing("onnxruntime"), _load_onnxruntime),
    "openvino": Start(_importing("openvino"), _load_openvino),
}


def measure(
    start: Start, model: str, file: Path, image_file: Path, threads: int
) -> tuple[dict[str, float], Any]:
    """Starts an engine in this process, which must not have imported it yet.

    Args:
        start: how.
        model: a name of ``list_models()``.
        file: the weights or the program.
        image_file: ``.npy`` of a float32 image ``[1, 3, H, W]``.
        threads: of the engine.

    Returns:
        import_s, seconds of all imports; cold_s, from the file to the first logits; peak_bytes, most resident memory
        until the last image above that after the import of the framework; and the first logits.
    """
    clock_s = time.perf_counter()
    start.framework()
    image = importlib.import_module("numpy").load(image_file)
    import_s = time.perf_counter() - clock_s
    base_bytes = resident_bytes()
    forget_peak()

    clock_s = time.perf_counter()
    if start.package:
        importlib.import_module(start.package)
    import_s += time.perf_counter() - clock_s

    clock_s = time.perf_counter()
    run = start.load(model, file, threads)
    logits = run(image)
    cold_s = time.perf_counter() - clock_s
    for _ in range(MORE_IMAGES):
        run(image)
    peak_bytes = peak_resident_bytes() - base_bytes
    return {"import_s": import_s, "cold_s": cold_s, "peak_bytes": peak_bytes}, logits


def main(argv: list[str]) -> int:
    """Runs one engine and prints one line of JSON: what was measured, and the first logits."""
    parser = argparse.ArgumentParser(prog="python -m bench.startup_process", description=__doc__)
    parser.add_argument("engine", choices=tuple(STARTS))
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("threads", type=int)
    options = parser.parse_args(argv)
    measured, logits = measure(
        STARTS[options.engine], options.model, options.file, options.image, options.threads
    )
    print(json.dumps({**measured, "logits": logits.ravel().tolist()}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

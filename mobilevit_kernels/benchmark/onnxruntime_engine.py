"""ONNX Runtime as an engine."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from mobilevit_kernels.benchmark.engine import Run, missing_packages


class OnnxRuntimeEngine:
    """ONNX Runtime's CPU provider on what ``torch.onnx.export`` writes, all graph optimizations on; float32 only."""

    name = "ONNX Runtime"

    def absence(self, dtype: torch.dtype) -> str | None:
        """Returns which package is missing, or that the CPU provider has no bfloat16."""
        missing = missing_packages("onnxruntime", "onnx", "onnxscript")
        if missing is None and dtype != torch.float32:
            return "no bfloat16 on the CPU"
        return missing

    def prepare(self, network: nn.Module, inputs: Tensor, dtype: torch.dtype) -> Callable[[int], Run]:
        """As :meth:`Engine.prepare`."""
        return partial(_build, export_onnx(network, inputs.float()), inputs.float())


def export_onnx(network: nn.Module, inputs: Tensor) -> bytes:
    """An ``.onnx`` file of a float32 network in eval mode, weights included, for inputs of this size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(network, (inputs,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _build(model: bytes, inputs: Tensor, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that went on spinning after a call would slow the candidate that is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: inputs.contiguous().numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])

"""Where the Triton kernels can run, as a predicate over facts, without any of the hardware."""

import os
import subprocess
import sys

import pytest
import torch

from mobilevit_kernels import explain_backends
from mobilevit_kernels.triton_kernels.support import Facts, explain

HOPPER = Facts("3.6.0", capability=(9, 0))
ROCM = Facts("3.6.0", capability=None)
INTERPRETER = Facts(
    "3.9.0", interpreted=True, device_error="torch finds no CUDA device or driver", numpy="2.4.6"
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "facts", [HOPPER, ROCM, Facts("3.9.0", capability=(8, 0)), Facts("3.9.0", capability=(12, 0))], ids=str
)
def test_devices_that_run(facts: Facts, dtype: torch.dtype) -> None:
    assert explain(facts, "cuda", dtype) is None


@pytest.mark.parametrize(
    ("facts", "device", "dtype", "reason"),
    [
        (Facts(None), "cuda", torch.float16, "triton is not installed: pip install triton"),
        (Facts(None), "cpu", torch.float16, "triton is not installed"),
        (Facts("3.6.0", device_error="no driver"), "cuda", torch.float16, "no driver"),
        (
            Facts("3.6.0", capability=(7, 5)),
            "cuda",
            torch.float16,
            "capability 8.0 or newer, this device has 7.5",
        ),
        (HOPPER, "cpu", torch.float16, "set TRITON_INTERPRET=1 before the import"),
        (HOPPER, "mps", torch.float16, "run on CUDA tensors, got a mps tensor"),
        (HOPPER, "meta", torch.float16, "run on CUDA tensors, got a meta tensor"),
        (HOPPER, "cuda", torch.float64, "float32, bfloat16 and float16, got torch.float64"),
        (INTERPRETER, "cuda", torch.float16, "torch finds no CUDA device or driver"),
        (INTERPRETER, "cpu", torch.bfloat16, "has no bfloat16 arithmetic"),
        (INTERPRETER, "cpu", torch.float64, "got torch.float64"),
        (
            Facts("3.6.0", interpreted=True, numpy="2.4.0"),
            "cpu",
            torch.float32,
            "interpreter of Triton 3.6.0 needs NumPy below 2.4, this is 2.4.0",
        ),
    ],
)
def test_reasons(facts: Facts, device: str, dtype: torch.dtype, reason: str) -> None:
    answer = explain(facts, device, dtype)
    assert answer is not None
    assert reason in answer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_interpreter_runs_cpu_tensors(dtype: torch.dtype) -> None:
    assert explain(INTERPRETER, "cpu", dtype) is None
    assert explain(Facts("3.6.0", interpreted=True, numpy="2.3.5"), "cpu", dtype) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about processes without a CUDA device")
def test_explain_backends_says_that_there_is_no_device() -> None:
    report = explain_backends("unfold_attn_fold", device="cuda", dtype=torch.float16)
    assert list(report) == ["native", "triton", "reference"]
    assert report["triton"] in (
        "torch finds no CUDA device or driver",
        "triton is not installed: pip install triton",
    )
    assert report["reference"] is None


def test_importing_the_package_loads_no_kernel() -> None:
    """Kernels import triton, which may be absent; torch itself may import it or not."""
    script = (
        "import sys, mobilevit_kernels; name = 'mobilevit_kernels.triton_kernels';"
        "sys.exit(str(sorted(m for m in sys.modules if m.startswith(name + '.') and m != name + '.support')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.strip() == "[]"

"""``mobilevit info``: what is installed, what the processor can do, and which backend runs what."""

import argparse
import os
import platform

import torch

import mobilevit_kernels
import mobilevit_kernels._build_info as build_info
import mobilevit_kernels._C as native
from mobilevit_kernels import current_backend, explain_backends
from mobilevit_kernels.backends import OPS

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def run(args: argparse.Namespace) -> int:
    """Prints the report; returns 0."""
    for name, value in version_rows() + processor_rows():
        print(f"{name:<18}{value}")
    print(f"\nBackends (choice: {current_backend()!r}; 'auto' takes the first that can run)")
    for op in OPS:
        for device in ("cpu", "cuda"):
            print(f"  {op} on {device}")
            for line in backend_lines(op, device):
                print(f"    {line}")
    return 0


def version_rows() -> list[tuple[str, str]]:
    """Names and versions of the package, torch and Python."""
    return [
        ("mobilevit_kernels", mobilevit_kernels.__version__),
        ("torch", f"{torch.__version__} (extension built for {build_info.TORCH_VERSION})"),
        ("Python", f"{platform.python_version()} on {platform.platform()}"),
    ]


def processor_rows() -> list[tuple[str, str]]:
    """Instruction sets, threads and GPU of this process."""
    kernels, torch_kernels = native.cpu_capability(), torch.backends.cpu.get_cpu_capability().lower()
    return [
        ("instruction set", f"{kernels} (these kernels), {torch_kernels} (torch)"),
        ("threads", f"{torch.get_num_threads()} on {len(os.sched_getaffinity(0))} usable processors"),
        ("CUDA", cuda_absence() or f"{torch.version.cuda}, {torch.cuda.get_device_name()}"),
    ]


def cuda_absence() -> str | None:
    """Returns why no CUDA device can be used, or None where one can."""
    if not torch.backends.cuda.is_built():
        return f"unavailable: torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "unavailable: torch finds no CUDA device or driver"
    return None


def backend_lines(op: str, device: str) -> list[str]:
    """One line per backend: the dtypes it runs, and its reason for each that it cannot."""
    absence = cuda_absence() if device == "cuda" else None
    if absence is not None:
        return [absence]
    reports = {dtype: explain_backends(op, device=device, dtype=dtype) for dtype in DTYPES}
    lines = []
    for backend in reports[DTYPES[0]]:
        dtypes_of: dict[str | None, list[str]] = {}
        for dtype, report in reports.items():
            dtypes_of.setdefault(report[backend], []).append(str(dtype).removeprefix("torch."))
        for reason, dtypes in dtypes_of.items():
            lines.append(f"{backend:<10} {'runs' if reason is None else 'cannot run'} {', '.join(dtypes)}")
            if reason is not None:
                lines[-1] += f": {reason}"
    return lines

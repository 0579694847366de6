"""What a result was measured on: the facts that stand beside every number."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from mobilevit_kernels import current_backend, explain_backends

_PACKAGES = ("mobilevit-kernels", "torch", "timm", "onnxruntime", "onnx", "onnxscript", "openvino")


def processor_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def chosen_backend(op: str, device: torch.device | str = "cpu") -> str:
    """The backend that runs an op on a float32 tensor of this device under the current choice."""
    if current_backend() != "auto":
        return current_backend()
    reasons = explain_backends(op, device=device)
    return next((name for name, reason in reasons.items() if reason is None), "none")


def describe_environment(device: torch.device | str = "cpu") -> dict[str, str]:
    """Processor, instruction set, cores, versions and backends, by name."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor_name(),
        "instruction set": torch.backends.cpu.get_cpu_capability(),
        "cores": str(len(os.sched_getaffinity(0))),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **versions,
        "unfold_attn_fold backend": chosen_backend("unfold_attn_fold", device),
        "separable_attn backend": chosen_backend("separable_attn", device),
    }

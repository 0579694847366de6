"""What a GPU report was measured on."""

import subprocess
from importlib import metadata

import torch

from mobilevit_kernels.benchmark.environment import describe_environment

_SMI_FIELDS = {
    "driver_version": "driver",
    "clocks.max.sm": "highest SM clock, MHz",
    "clocks.max.mem": "highest memory clock, MHz",
    "clocks.sm": "SM clock at the start, MHz",
    "power.limit": "power limit, W",
    "power.draw": "power at the start, W",
    "temperature.gpu": "temperature at the start, C",
}


def device_facts(device: torch.device) -> dict[str, str]:
    """The GPU, its driver and clocks, and the versions of everything between it and this package."""
    facts = describe_environment(device)
    for package in ("triton", "transformers"):
        facts[package] = _version(package)
    if device.type != "cuda":
        return {"device": facts["processor"], **facts}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "GPU memory, GiB": f"{properties.total_memory / 2**30:.1f}",
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": str(properties.multi_processor_count),
        "CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        **smi_facts(f"GPU-{properties.uuid}"),
        "TF32 in matrix products": str(torch.backends.cuda.matmul.allow_tf32),
        "TF32 in convolutions": str(torch.backends.cudnn.allow_tf32),
        **facts,
    }


def smi_facts(gpu: str) -> dict[str, str]:
    """Driver, clocks and power of a GPU (its UUID) as nvidia-smi prints them; empty where it cannot be run."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            [*command, f"--id={gpu}"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return parse_smi(done.stdout)


def parse_smi(line: str) -> dict[str, str]:
    """The fields of one line that nvidia-smi printed."""
    values = [value.strip() for value in line.strip().split(",")]
    return dict(zip(_SMI_FIELDS.values(), values, strict=False))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

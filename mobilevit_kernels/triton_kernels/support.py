"""Whether Triton can run here: facts about this process, and a predicate over them that needs no hardware."""

import importlib.util
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

import torch

MIN_CAPABILITY = (8, 0)
DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16})


@dataclass(frozen=True)
class Facts:
    """What decides where Triton runs.

    Attributes:
        version: of the installed triton; None where it is not installed.
        interpreted: ``TRITON_INTERPRET=1`` was set at the first look, so kernels run on the CPU, in NumPy.
        device_error: why no CUDA (or ROCm) device can be used; None where one can.
        capability: compute capability of the current CUDA device; None on ROCm and without a device.
        numpy: version of NumPy, in which the interpreter computes.
    """

    version: str | None
    interpreted: bool = False
    device_error: str | None = None
    capability: tuple[int, int] | None = None
    numpy: str = ""


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1``, set before the import)."""
    return _facts().interpreted


@lru_cache(maxsize=64)
def reason(device_type: str, dtype: torch.dtype) -> str | None:
    """Returns None if the Triton kernels run tensors of this device type and dtype here, else why not."""
    return explain(_facts(), device_type, dtype)


def explain(facts: Facts, device_type: str, dtype: torch.dtype) -> str | None:
    """Returns None if ``facts`` let Triton run tensors of this device type and dtype, else the first reason."""
    if facts.version is None:
        return "triton is not installed: pip install triton"
    if device_type == "cpu":
        if not facts.interpreted:
            return "Triton runs CPU tensors only in its interpreter: set TRITON_INTERPRET=1 before the import"
        if _release(facts.version) < (3, 7) and _release(facts.numpy) >= (2, 4):
            return f"the interpreter of Triton {facts.version} needs NumPy below 2.4, this is {facts.numpy}"
    elif device_type != "cuda":
        return f"the Triton kernels run on CUDA tensors, got a {device_type} tensor"
    elif facts.device_error is not None:
        return facts.device_error
    elif facts.capability is not None and facts.capability < MIN_CAPABILITY:
        major, minor = facts.capability
        return f"the Triton kernels need compute capability 8.0 or newer, this device has {major}.{minor}"
    if dtype not in DTYPES:
        return f"the Triton kernels compute float32, bfloat16 and float16, got {dtype}"
    if facts.interpreted and dtype == torch.bfloat16:
        return "Triton's interpreter has no bfloat16 arithmetic"
    return None


def _release(version: str) -> tuple[int, int]:
    """Major and minor number of a version such as "3.6.0+git1"."""
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


@lru_cache(maxsize=1)
def _facts() -> Facts:
    if importlib.util.find_spec("triton") is None:
        return Facts(version=None)
    version = metadata.version("triton")
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
        error = _device_error(check_driver=False)
        return Facts(version, interpreted=True, device_error=error, numpy=metadata.version("numpy"))
    error = _device_error(check_driver=True)
    on_cuda = error is None and torch.version.hip is None
    return Facts(version, False, error, torch.cuda.get_device_capability() if on_cuda else None)


def _device_error(check_driver: bool) -> str | None:
    """Why no device can be used. A CUDA build of torch or triton proves nothing: only a driver that answers does."""
    if not torch.cuda.is_available():
        return "torch finds no CUDA device or driver"
    if check_driver:
        from triton.runtime import driver

        try:
            driver.active.get_current_target()
        except RuntimeError as error:
            return f"Triton finds no driver: {error}"
    return None

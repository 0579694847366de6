"""Instruction sets of the CPU kernels: marks, and code that runs in a process with a forced one."""

import subprocess
import sys

import pytest
import torch

from mobilevit_kernels import _C

CAPABILITIES = ["default", "avx2", "avx512", "avx512_bf16", "amx"]
LOWER = [name for name in CAPABILITIES if CAPABILITIES.index(name) < CAPABILITIES.index(_C.cpu_capability())]

_HAS_AVX512 = CAPABILITIES.index(_C.cpu_capability()) >= CAPABILITIES.index("avx512")

needs_avx512 = pytest.mark.skipif(not _HAS_AVX512, reason="bfloat16 products need AVX-512")
# What packed weights may be in: the dtypes of the products.
PRODUCTS = [torch.float32, torch.bfloat16] if _HAS_AVX512 else [torch.float32]


def run_with(capability: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs Python code, which may import what tests may, in a process whose kernels use one instruction set."""
    monkeypatch.setenv("MOBILEVIT_CPU_CAPABILITY", capability)
    monkeypatch.setenv("PYTHONPATH", ":".join(path for path in sys.path if path))
    subprocess.run([sys.executable, "-c", script], check=True)

"""Every instruction set in a process of its own, with malloc handing out garbage: same results, clear errors."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from capabilities import CAPABILITIES
from torch import Tensor

Builder = Callable[..., Any]
SCRIPT = """
import sys, torch
import mobilevit_kernels
from mobilevit_kernels import _C
mobilevit_kernels.use_backend("native")
results = []
for op, tensors, args, grad_out in torch.load(sys.argv[1]):
    leaves = [None if t is None else t.requires_grad_() for t in tensors]
    out = getattr(mobilevit_kernels, op)(*leaves, *args)
    grads = torch.autograd.grad(out, [t for t in leaves if t is not None], grad_out)
    results.append([out.detach(), *grads])
torch.save(results, sys.argv[2])
print(_C.cpu_capability())
"""


def run_script(script: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a new process, without the capability variables of this one."""
    ours = ("MOBILEVIT_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY", "MOBILEVIT_BACKEND")
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def reported(environment: dict[str, str]) -> str:
    """The instruction set that a new process names."""
    done = run_script("from mobilevit_kernels import _C; print(_C.cpu_capability())", environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def problems(attention: Builder, separable: Builder) -> list[Any]:
    """Both ops, every dtype: whole vectors, remainders of vectors, fewer numbers than one vector."""
    built = []
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        built += [attention(head_dim=head_dim, grid=(5, 7), dtype=dtype) for head_dim in (3, 16, 36)]
        built += [separable(channels=channels, grid=(5, 7), dtype=dtype) for channels in (5, 48, 65)]
        built += [attention(grid=(17, 17), patch=(1, 1), dtype=dtype)]
    return built


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("MOBILEVIT_CPU_CAPABILITY", "default"),
        ("MOBILEVIT_CPU_CAPABILITY", "avx2"),
        ("MOBILEVIT_CPU_CAPABILITY", "avx512"),
        pytest.param("MOBILEVIT_CPU_CAPABILITY", "avx512_bf16", marks=pytest.mark.slow),
        pytest.param("MOBILEVIT_CPU_CAPABILITY", "amx", marks=pytest.mark.slow),
        pytest.param("ATEN_CPU_CAPABILITY", "default", marks=pytest.mark.slow),
        pytest.param("ATEN_CPU_CAPABILITY", "avx2", marks=pytest.mark.slow),
    ],
)
def test_results_with_a_forced_instruction_set(
    variable: str,
    value: str,
    tmp_path: Path,
    attention: Builder,
    separable: Builder,
    forward_rule: Callable[..., None],
    backward_rule: Callable[..., None],
) -> None:
    built = problems(attention, separable)
    grads_out = [torch.randn_like(problem.baseline()) for problem in built]
    torch.save(
        [(p.op, p.tensors, p.args, g) for p, g in zip(built, grads_out, strict=True)],
        tmp_path / "problems.pt",
    )
    environment = {variable: value, "MALLOC_PERTURB_": "129"}
    done = run_script(SCRIPT, environment, str(tmp_path / "problems.pt"), str(tmp_path / "results.pt"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == min(value, reported({}), key=CAPABILITIES.index)
    results: list[list[Tensor]] = torch.load(tmp_path / "results.pt")
    for problem, grad_out, (out, *grads) in zip(built, grads_out, results, strict=True):
        forward_rule(problem, out)
        backward_rule(problem, grad_out, grads)


def test_unknown_instruction_set_is_an_error() -> None:
    use = "import torch, mobilevit_kernels as m; m.unfold_attn_fold(torch.ones(1, 3, 2, 2), 1)"
    done = run_script(use, {"MOBILEVIT_CPU_CAPABILITY": "sse9"})
    assert done.returncode == 1
    expected = (
        "ValueError: MOBILEVIT_CPU_CAPABILITY: expected default, avx2, avx512, avx512_bf16 or amx, got 'sse9'"
    )
    assert expected in done.stderr


def test_reported_capability_is_that_of_torch_or_its_extension() -> None:
    of_torch = torch.backends.cpu.get_cpu_capability().lower()
    features = torch.cpu.get_capabilities()
    ours_of = {"avx512_bf16": "avx512_bf16", "amx_bf16": "amx"}
    extensions = [ours for theirs, ours in ours_of.items() if features.get(theirs)]
    best = extensions[-1] if of_torch == "avx512" and extensions else of_torch
    assert reported({}) == (best if best in CAPABILITIES else "default")

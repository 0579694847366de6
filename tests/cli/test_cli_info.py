"""``mobilevit info`` and the parser."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mobilevit_kernels
from mobilevit_kernels.backends import BACKENDS, OPS
from mobilevit_kernels.cli import info
from mobilevit_kernels.cli.main import COMMANDS

Command = Callable[..., Any]


def test_module_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "MOBILEVIT_BACKEND": "reference"}
    command = [sys.executable, "-m", "mobilevit_kernels", "info"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"mobilevit_kernels {mobilevit_kernels.__version__}" in done.stdout
    assert "choice: 'reference'" in done.stdout


def test_info_names_versions_and_every_backend(mobilevit: Command) -> None:
    code, out, err = mobilevit("info")
    assert (code, err) == (0, "")
    assert f"{torch.__version__} (extension built for {torch.__version__})" in out
    assert mobilevit_kernels._C.cpu_capability() in out
    for op in OPS:
        assert f"{op} on cpu" in out
        assert f"{op} on cuda" in out
    for backend in BACKENDS[1:]:
        assert out.count(f"    {backend:<10}") >= len(OPS)


def test_a_backend_that_cannot_run_says_why() -> None:
    lines = info.backend_lines("unfold_attn_fold", "meta")
    assert (
        "native     cannot run float32, bfloat16, float16, float64: the native kernels run on CPU tensors"
        in lines[0]
    )


def test_cuda_without_a_device_is_unavailable_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert info.backend_lines("separable_attn", "cuda") == [
        "unavailable: torch finds no CUDA device or driver"
    ]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "COMMAND"),
        (["cook"], "invalid choice: 'cook'"),
        (["classify", "cat.png"], "--weights"),
        (["classify", "cat.png", "--weights", "a.pt", "--topk", "0"], "expected a positive integer, got '0'"),
        (["convert", "a.pt", "b.pt", "--to", "onnx"], "invalid choice: 'onnx'"),
        (["demo", "--models", "mobilevit_xxs", "--weights", "a.pt"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_exit_with_2(mobilevit: Command, arguments: list[str], reason: str) -> None:
    code, out, err = mobilevit(*arguments)
    assert (code, out) == (2, "")
    assert reason in err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(mobilevit: Command, command: str) -> None:
    code, out, _ = mobilevit(*command.split(), "--help")
    assert code == 0
    assert out.startswith(f"usage: mobilevit {command}".rstrip())


def test_version(mobilevit: Command) -> None:
    assert mobilevit("--version").out == f"mobilevit_kernels {mobilevit_kernels.__version__}\n"


def test_a_missing_optional_package_is_one_line(mobilevit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mobilevit_kernels.cli.classify", raising=False)
    monkeypatch.delitem(sys.modules, "mobilevit_kernels.cli.images", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    code, _, err = mobilevit("classify", "cat.png", "--weights", "a.pt")
    assert code == 1
    assert err == (
        "mobilevit: error: 'classify' needs the package PIL, which is not installed: "
        "pip install 'mobilevit-kernels[cli]'\n"
    )

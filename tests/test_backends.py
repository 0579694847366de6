"""Choosing a backend, and the reason where one cannot run; problems on other devices are only described."""

import os
import re
import subprocess
import sys

import pytest
import torch

import mobilevit_kernels
from mobilevit_kernels import backends, current_backend, explain_backends, use_backend

OPS = ["unfold_attn_fold", "separable_attn"]
KERNEL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OTHER_DTYPES = [torch.int64, torch.uint8, torch.bool, torch.complex64]


def run_op(op: str, x: torch.Tensor) -> torch.Tensor:
    """One call of an op with a map of 6 channels."""
    if op == "unfold_attn_fold":
        return mobilevit_kernels.unfold_attn_fold(x, 1)
    weight = torch.ones(13, 6, dtype=x.dtype, device=x.device)
    return mobilevit_kernels.separable_attn(x, weight, None, weight[:6], None)


def python(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a new process."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class TestUseBackend:
    """Setter and context manager."""

    def test_setter(self) -> None:
        use_backend("reference")
        assert current_backend() == "reference"
        use_backend("native")
        assert current_backend() == "native"

    def test_context_manager_restores_what_was_chosen_before(self) -> None:
        use_backend("native")
        with use_backend("reference"):
            assert current_backend() == "reference"
        assert current_backend() == "native"

    def test_nesting(self) -> None:
        use_backend("auto")
        with use_backend("native"):
            with use_backend("reference"):
                assert current_backend() == "reference"
            assert current_backend() == "native"
        assert current_backend() == "auto"

    def test_setter_inside_a_context_ends_with_it(self) -> None:
        use_backend("auto")
        with use_backend("native"):
            use_backend("reference")
        assert current_backend() == "auto"

    def test_exception_restores(self) -> None:
        use_backend("auto")
        with pytest.raises(KeyError), use_backend("reference"):
            raise KeyError
        assert current_backend() == "auto"

    def test_unknown_name_changes_nothing(self) -> None:
        use_backend("reference")
        with pytest.raises(
            ValueError, match=r"^use_backend\(name\): expected one of auto, native, .*got 'cudnn'"
        ):
            use_backend("cudnn")
        assert current_backend() == "reference"

    def test_names_are_exact(self) -> None:
        for name in ("", "Native", " native"):
            with pytest.raises(ValueError, match="expected one of"):
                use_backend(name)


class TestChoiceIsObeyed:
    """What runs is what was asked for."""

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("name", ["auto", "native", "reference"])
    def test_operator_calls(self, op: str, name: str) -> None:
        x = torch.randn(1, 6, 4, 4)
        with use_backend(name), torch.profiler.profile() as profile:
            run_op(op, x)
        called = f"mobilevit::{op}" in {event.key for event in profile.key_averages()}
        assert called == (name != "reference")

    @pytest.mark.parametrize("op", OPS)
    def test_native_refuses_another_device(self, op: str) -> None:
        x = torch.randn(1, 6, 4, 4, device="meta")
        message = (
            f"{op} cannot run on backend 'native': native: the native kernels run on CPU tensors, got a meta"
        )
        with use_backend("native"), pytest.raises(RuntimeError, match=message):
            run_op(op, x)

    @pytest.mark.parametrize("op", OPS)
    def test_auto_takes_the_reference_where_the_kernels_cannot_run(self, op: str) -> None:
        x = torch.randn(1, 6, 4, 4, device="meta")
        with use_backend("auto"):
            assert run_op(op, x).shape == (1, 2 if op == "unfold_attn_fold" else 6, 4, 4)


class TestEnvironment:
    """MOBILEVIT_BACKEND sets the choice at import."""

    @pytest.mark.parametrize("name", ["auto", "native", "reference"])
    def test_choice(self, name: str) -> None:
        done = python("import mobilevit_kernels as m; print(m.current_backend())", MOBILEVIT_BACKEND=name)
        assert done.stdout.strip() == name, done.stderr

    def test_unknown_name(self) -> None:
        done = python("import mobilevit_kernels", MOBILEVIT_BACKEND="gpu")
        assert done.returncode == 1
        assert "ValueError: MOBILEVIT_BACKEND: expected one of auto, native" in done.stderr
        assert "got 'gpu'" in done.stderr


class TestExplainBackends:
    """Predicates, which need no hardware."""

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
    def test_every_backend_of_the_cpu_takes_the_kernel_dtypes(self, op: str, dtype: torch.dtype) -> None:
        reasons = explain_backends(op, dtype=dtype)
        assert list(reasons)[0] == "native"
        assert reasons["native"] is None
        assert reasons["reference"] is None

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("device", ["cuda", "cuda:1", "meta", torch.device("mps")], ids=str)
    def test_native_needs_the_cpu(self, op: str, device: str | torch.device) -> None:
        reasons = explain_backends(op, device=device)
        kind = torch.device(device).type
        assert reasons["native"] == f"the native kernels run on CPU tensors, got a {kind} tensor"
        assert reasons["reference"] is None

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("dtype", OTHER_DTYPES, ids=str)
    def test_no_backend_takes_other_dtypes(self, op: str, dtype: torch.dtype) -> None:
        for name, reason in explain_backends(op, dtype=dtype).items():
            assert reason is not None, name
            assert str(dtype) in reason

    @pytest.mark.parametrize("op", OPS)
    def test_tensor_overrides_device_and_dtype(self, op: str) -> None:
        x = torch.ones(1, 6, 4, 4, dtype=torch.int32, device="meta")
        assert explain_backends(op, x, device="cpu") == explain_backends(op, device="meta", dtype=torch.int32)

    @pytest.mark.parametrize("op", OPS)
    @pytest.mark.parametrize("dtype", [*KERNEL_DTYPES, *OTHER_DTYPES, torch.float8_e4m3fn], ids=str)
    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_explanation_agrees_with_what_runs(self, op: str, dtype: torch.dtype, device: str) -> None:
        x = torch.ones(1, 6, 4, 4, device=device).to(dtype)
        for name, reason in explain_backends(op, x).items():
            with use_backend(name):
                if reason is None:
                    assert run_op(op, x).dtype == dtype
                else:
                    with pytest.raises((RuntimeError, TypeError), match=f"{re.escape(reason)}|got {dtype}"):
                        run_op(op, x)

    def test_unknown_op(self) -> None:
        with pytest.raises(ValueError, match=r"^explain_backends\(op\): expected one of .*got 'attention'"):
            explain_backends("attention")


def test_torchs_compiler_is_not_imported() -> None:
    """Its import takes seconds, which a process that only infers should not wait for."""
    script = """
import sys, torch
before = "torch._dynamo" in sys.modules
import mobilevit_kernels as mk
mk.optimize_for_inference(mk.create_model("mobilevit_xxs"))(torch.rand(1, 3, 64, 64))
sys.exit(not before and "torch._dynamo" in sys.modules)
"""
    assert python(script).returncode == 0


def test_what_the_compiler_takes_as_a_constant_is_marked_as_torch_marks_it() -> None:
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(backends._triton_reason) == vars(marked)

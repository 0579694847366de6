"""Error rule of the GPU's kernels against float64 truth, next to plain PyTorch in the same dtype."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import readable

import mobilevit_kernels
from bench.shapes import STAGE_SHAPES, StageShape, unique_shapes

pytestmark = pytest.mark.usefixtures("gpu_kernels")

Builder = Callable[..., Any]
Rule = Callable[[Any], None]
HEAD_DIMS = [1, 3, 8, 16, 20, 24, 30, 33, 36, 48, 60, 64, 65, 80, 96, 127, 128]
CHANNELS = [1, 3, 16, 17, 64, 96, 129, 256, 512]
GRIDS = [(1, 1), (1, 2), (3, 3), (1, 17), (5, 3), (7, 9), (8, 8), (16, 16)]
LONG_GRIDS = [(32, 32), (33, 31), (67, 67)]
PATCHES = [(1, 1), (2, 2), (4, 4), (7, 1), (1, 3)]


@pytest.mark.parametrize("stage", unique_shapes(STAGE_SHAPES), ids=lambda stage: f"{stage.op}-{stage}")
def test_stages_of_the_models(
    make_problem: Builder, stage: StageShape, dtype: torch.dtype, rule: Rule, small: bool
) -> None:
    side = min(stage.side // 2, 4) if small else stage.side // 2
    sizes: dict[str, Any] = {"channels": stage.channels}
    if stage.op == "unfold_attn_fold":
        sizes = {"heads": stage.num_heads, "head_dim": stage.channels // stage.num_heads}
    rule(make_problem(stage.op, batch=1 if small else 2, grid=(side, side), dtype=dtype, **sizes))


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(make_problem: Builder, head_dim: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem("unfold_attn_fold", head_dim=head_dim, heads=2, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("heads", [1, 3, 8])
def test_head_counts(make_problem: Builder, heads: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem("unfold_attn_fold", heads=heads, head_dim=12, grid=(3, 3), dtype=dtype))


@pytest.mark.parametrize("scale", [0.0, 1.0, -0.5])
def test_scales(make_problem: Builder, scale: float, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem("unfold_attn_fold", scale=scale, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(make_problem: Builder, channels: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem("separable_attn", channels=channels, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("weight_dims", [2, 4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_weight_forms(
    make_problem: Builder, weight_dims: int, bias: bool, dtype: torch.dtype, rule: Rule
) -> None:
    options = {"channels": 20, "bias": bias, "weight_dims": weight_dims, "dtype": dtype}
    rule(make_problem("separable_attn", **options))


@pytest.mark.parametrize("grid", GRIDS, ids=readable)
def test_token_counts(
    op: str, make_problem: Builder, grid: tuple[int, int], dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, batch=2, grid=grid, patch=(2, 1), dtype=dtype))


@pytest.mark.parametrize("grid", LONG_GRIDS, ids=readable)
def test_many_tokens(
    op: str, make_problem: Builder, grid: tuple[int, int], dtype: torch.dtype, rule: Rule, small: bool
) -> None:
    grid = (grid[0] // 4, grid[1] // 4) if small else grid
    rule(make_problem(op, batch=1, grid=grid, patch=(1, 1), dtype=dtype))


@pytest.mark.parametrize("patch", PATCHES, ids=readable)
def test_patches(
    op: str, make_problem: Builder, patch: tuple[int, int], dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, patch=patch, grid=(3, 4), dtype=dtype))


@pytest.mark.parametrize("gain", [0.05, 8.0])
def test_flat_and_peaked_scores(
    op: str, make_problem: Builder, gain: float, dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, gain=gain, grid=(5, 5), dtype=dtype))


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_batches(op: str, make_problem: Builder, batch: int, dtype: torch.dtype) -> None:
    problem = make_problem(op, batch=batch, dtype=dtype)
    torch.testing.assert_close(problem.fused(), problem.reference(), rtol=0.02, atol=0.02)


def test_float64_runs_under_auto(op: str, make_problem: Builder) -> None:
    problem = make_problem(op, dtype=torch.float64)
    grad_out = torch.randn_like(problem.reference())
    with mobilevit_kernels.use_backend("auto"):
        out = problem.fused()
        grads = problem.gradients(type(problem).fused, grad_out)
    torch.testing.assert_close(out, problem.reference())
    torch.testing.assert_close(grads, problem.gradients(type(problem).reference, grad_out))


@pytest.mark.usefixtures("cuda")
def test_triton_is_the_default_here(op: str, device: torch.device, dtype: torch.dtype) -> None:
    reasons = mobilevit_kernels.explain_backends(op, device=device, dtype=dtype)
    runnable = [name for name, reason in reasons.items() if reason is None]
    assert runnable[0] == "triton", reasons


class TestTF32:
    """float32 products follow torch's own setting."""

    SIZES = {
        "unfold_attn_fold": {"heads": 2, "head_dim": 64, "grid": (8, 8)},
        "separable_attn": {"channels": 256, "grid": (8, 8)},
    }

    @pytest.mark.usefixtures("restored_tf32")
    @pytest.mark.parametrize("precision", ["highest", "high"])
    def test_error_rule(self, op: str, make_problem: Builder, precision: str, rule: Rule) -> None:
        torch.set_float32_matmul_precision(precision)
        rule(make_problem(op, **self.SIZES[op]))

    @pytest.mark.usefixtures("cuda", "restored_tf32")
    def test_full_precision_is_not_tf32(self, op: str, make_problem: Builder) -> None:
        torch.set_float32_matmul_precision("highest")
        problem = make_problem(op, **self.SIZES[op])
        wide = problem.map_tensors(torch.Tensor.double)
        grad_out = torch.randn_like(problem.fused())
        actual = [problem.fused(), *problem.gradients(type(problem).fused, grad_out)]
        truth = [wide.reference(), *wide.gradients(type(wide).reference, grad_out.double())]
        for index, (one, other) in enumerate(zip(actual, truth, strict=True)):
            error = (one - other).abs().max() / other.abs().max()
            assert error < 2e-5, f"result {index}"  # TF32 has ten bits: its error is near 1e-3

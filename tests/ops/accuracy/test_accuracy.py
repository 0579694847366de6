"""Error rule of the native kernels against float64 truth, next to plain PyTorch in the same dtype."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import readable

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
STAGE_HEAD_DIMS = [16, 20, 24, 30, 36, 48, 60]
HEAD_DIMS = [*STAGE_HEAD_DIMS, 1, 3, 5, 17, 33, 64, 128]
CHANNELS = [1, 3, 16, 17, 64, 96, 129, 256]
GRIDS = [(1, 1), (1, 2), (3, 3), (4, 4), (7, 7), (8, 8), (16, 16)]
PATCHES = [(2, 2), (1, 1), (2, 1), (1, 2), (4, 4), (3, 2), (5, 1)]
Builder = Callable[..., Any]
Rule = Callable[[Any], None]


@pytest.fixture(params=DTYPES, ids=readable)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Every dtype of the kernels."""
    return request.param


@pytest.fixture(params=["forward", "backward"])
def rule(request: pytest.FixtureRequest) -> Rule:
    """The error rule of the output and that of the gradients."""
    return request.getfixturevalue(f"{request.param}_rule")


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_head_dims(attention: Builder, head_dim: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(attention(head_dim=head_dim, heads=2, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("head_dim", [20, 36, 33])
@pytest.mark.parametrize("grid", GRIDS, ids=readable)
def test_attention_token_counts(
    attention: Builder, grid: tuple[int, int], head_dim: int, dtype: torch.dtype, rule: Rule
) -> None:
    rule(attention(batch=1, heads=1, head_dim=head_dim, grid=grid, patch=(2, 1), dtype=dtype))


@pytest.mark.parametrize("heads", [1, 3, 4, 8])
def test_head_counts(attention: Builder, heads: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(attention(heads=heads, head_dim=12, grid=(3, 3), dtype=dtype))


@pytest.mark.parametrize("scale", [0.0, 1.0, 0.37, -0.5])
def test_scales(attention: Builder, scale: float, dtype: torch.dtype, rule: Rule) -> None:
    rule(attention(scale=scale, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("channels", CHANNELS)
def test_channels(separable: Builder, channels: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(separable(channels=channels, grid=(4, 4), dtype=dtype))


@pytest.mark.parametrize("channels", [24, 65])
@pytest.mark.parametrize("grid", GRIDS, ids=readable)
def test_separable_token_counts(
    separable: Builder, grid: tuple[int, int], channels: int, dtype: torch.dtype, rule: Rule
) -> None:
    rule(separable(batch=1, channels=channels, grid=grid, dtype=dtype))


@pytest.mark.parametrize("weight_dims", [2, 4])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_weight_forms(
    separable: Builder, weight_dims: int, bias: bool, dtype: torch.dtype, rule: Rule
) -> None:
    rule(separable(channels=20, bias=bias, weight_dims=weight_dims, dtype=dtype))


@pytest.mark.parametrize("patch", PATCHES, ids=readable)
def test_patches(
    op: str, make_problem: Builder, patch: tuple[int, int], dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, patch=patch, grid=(3, 4), dtype=dtype))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_batches(op: str, make_problem: Builder, batch: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem(op, batch=batch, grid=(5, 3), dtype=dtype))


@pytest.mark.parametrize("gain", [0.05, 3.0, 8.0])
def test_flat_and_peaked_scores(
    op: str, make_problem: Builder, gain: float, dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, gain=gain, grid=(5, 5), dtype=dtype))


@pytest.mark.parametrize("patch", [(2, 2), (1, 1)], ids=readable)
def test_a_thousand_tokens(
    op: str, make_problem: Builder, patch: tuple[int, int], dtype: torch.dtype, rule: Rule
) -> None:
    rule(make_problem(op, batch=1, grid=(32, 32), patch=patch, dtype=dtype))


STAGES = {  # channels (unfold_attn_fold: 4 heads), token grid at 256 pixels
    "unfold_attn_fold": [
        (64, 16),
        (80, 8),
        (96, 4),
        (96, 16),
        (120, 8),
        (144, 4),
        (144, 16),
        (192, 8),
        (240, 4),
    ],
    "separable_attn": [
        (64, 16),
        (96, 8),
        (128, 4),
        (128, 16),
        (192, 8),
        (256, 4),
        (256, 16),
        (384, 8),
        (512, 4),
    ],
}


def stage_problem(op: str, channels: int, side: int, dtype: torch.dtype, builders: dict[str, Builder]) -> Any:
    """The problem of a model's stage, one image."""
    if op == "separable_attn":
        return builders[op](batch=1, channels=channels, grid=(side, side), dtype=dtype)
    return builders[op](batch=1, heads=4, head_dim=channels // 4, grid=(side, side), dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage_op", "channels", "side"),
    [(name, *stage) for name, stages in STAGES.items() for stage in stages],
    ids=readable,
)
def test_stages_of_the_models(
    stage_op: str,
    channels: int,
    side: int,
    dtype: torch.dtype,
    rule: Rule,
    attention: Builder,
    separable: Builder,
) -> None:
    builders = {"unfold_attn_fold": attention, "separable_attn": separable}
    rule(stage_problem(stage_op, channels, side, dtype, builders))


@pytest.mark.slow
@pytest.mark.parametrize("channels", [512])
def test_many_channels(separable: Builder, channels: int, dtype: torch.dtype, rule: Rule) -> None:
    rule(separable(channels=channels, grid=(5, 5), dtype=dtype))


@pytest.mark.slow
def test_thousands_of_tokens(op: str, make_problem: Builder, dtype: torch.dtype, rule: Rule) -> None:
    rule(make_problem(op, batch=1, grid=(67, 67), patch=(1, 1), dtype=dtype))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("grid", GRIDS, ids=readable)
def test_head_dims_by_token_counts(
    attention: Builder, head_dim: int, grid: tuple[int, int], dtype: torch.dtype, rule: Rule
) -> None:
    for patch, heads in itertools.product(PATCHES[:3], [1, 3]):
        rule(attention(batch=1, heads=heads, head_dim=head_dim, grid=grid, patch=patch, dtype=dtype))

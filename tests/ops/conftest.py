"""Fixtures of all tests of the ops: problems by op, and layouts of their map."""

from collections.abc import Callable, Sequence

import pytest
import torch
from op_problems import BASELINES, BUILDERS, LAYOUTS, Problem
from torch import Tensor


@pytest.fixture(params=list(BASELINES))
def op(request: pytest.FixtureRequest) -> str:
    """Runs the test once per op."""
    return request.param


@pytest.fixture
def attention() -> Callable[..., Problem]:
    """Builds problems of ``unfold_attn_fold``."""
    return BUILDERS["unfold_attn_fold"]


@pytest.fixture
def separable() -> Callable[..., Problem]:
    """Builds problems of ``separable_attn``."""
    return BUILDERS["separable_attn"]


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Builds a problem of the named op; keywords both builders take: batch, grid, patch, dtype, gain."""
    return lambda op, **options: BUILDERS[op](**options)


@pytest.fixture
def channels_last_strides() -> Callable[[Sequence[int]], tuple[int, ...]]:
    """Strides that torch itself gives to a new channels_last tensor of a shape."""
    return lambda shape: torch.empty(*shape, device="meta", memory_format=torch.channels_last).stride()


@pytest.fixture(params=list(LAYOUTS))
def layout(request: pytest.FixtureRequest) -> Callable[[Tensor], Tensor]:
    """Gives a map other strides. The values stay, except for the expanded layouts, which repeat the first."""
    return LAYOUTS[request.param]


@pytest.fixture
def layouts() -> dict[str, Callable[[Tensor], Tensor]]:
    """Every layout by name."""
    return LAYOUTS

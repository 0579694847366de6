"""Random shapes, dtypes and strides: the error rule, the promised strides, and agreement with the fake result."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mobilevit_kernels

Builder = Callable[..., Any]
Layout = Callable[[torch.Tensor], torch.Tensor]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
COMMON = {
    "batch": st.integers(0, 3),
    "grid": st.tuples(st.integers(0, 6), st.integers(0, 6)),
    "patch": st.tuples(st.integers(1, 4), st.integers(1, 4)),
    "dtype": st.sampled_from(DTYPES),
    "gain": st.sampled_from([0.1, 1.0, 4.0]),
}
ATTENTION = st.fixed_dictionaries({**COMMON, "heads": st.integers(1, 5), "head_dim": st.integers(1, 40)})
SEPARABLE = st.fixed_dictionaries(
    {
        **COMMON,
        "channels": st.integers(2, 70),
        "bias": st.booleans(),
        "weight_dims": st.sampled_from([2, 4]),
    }
)
LAYOUT = st.sampled_from(
    ["nchw", "channels_last", "dense_cwbh", "channel_slice", "row_slice", "column_step", "same_samples"]
)


@pytest.fixture
def check(
    layouts: dict[str, Layout],
    forward_rule: Callable[[Any], None],
    backward_rule: Callable[[Any], None],
    channels_last_strides: Callable[..., tuple[int, ...]],
) -> Callable[[Builder, Any, str, int], None]:
    """Everything a problem must satisfy, in a layout."""

    def run(build: Builder, options: Any, layout: str, seed: int) -> None:
        torch.manual_seed(seed)
        problem = build(**options)
        problem = problem.with_first(layouts[layout](problem.tensors[0]))
        with mobilevit_kernels.use_backend("native"):
            out = problem.fused()
            assert out.stride() == channels_last_strides(out.shape)
            if out.numel() == 0:
                return
            forward_rule(problem)
            backward_rule(problem)

    return run


def bounded(test: Callable[..., None]) -> Callable[..., None]:
    """Few examples in every run."""
    return settings(max_examples=60)(test)


def long(test: Callable[..., None]) -> Callable[..., None]:
    """Many examples, in slow runs."""
    return pytest.mark.slow(settings(max_examples=600)(test))


@bounded
@given(options=ATTENTION, layout=LAYOUT, seed=st.integers(0, 2**16))
def test_unfold_attn_fold(check: Any, attention: Builder, options: Any, layout: str, seed: int) -> None:
    check(attention, options, layout, seed)


@bounded
@given(options=SEPARABLE, layout=LAYOUT, seed=st.integers(0, 2**16))
def test_separable_attn(check: Any, separable: Builder, options: Any, layout: str, seed: int) -> None:
    check(separable, options, layout, seed)


@long
@given(options=ATTENTION, layout=LAYOUT, seed=st.integers(0, 2**16))
def test_unfold_attn_fold_long(check: Any, attention: Builder, options: Any, layout: str, seed: int) -> None:
    check(attention, options, layout, seed)


@long
@given(options=SEPARABLE, layout=LAYOUT, seed=st.integers(0, 2**16))
def test_separable_attn_long(check: Any, separable: Builder, options: Any, layout: str, seed: int) -> None:
    check(separable, options, layout, seed)

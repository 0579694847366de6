"""Every kernel and configuration of ``separable_attn``, also those that autotuning would choose on a GPU only."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor

from mobilevit_kernels import reference
from mobilevit_kernels.triton_kernels import separable_attn_configs as configs
from mobilevit_kernels.triton_kernels.launch import TARGETS, Config
from mobilevit_kernels.triton_kernels.separable_attn import (
    separable_attn,
    separable_attn_backward,
    separable_attn_forward,
)
from mobilevit_kernels.triton_kernels.tuning import force_config
from tests.support.op_checks import poisoned_memory
from tests.support.op_problems import LAYOUTS, Problem, make_separable

TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2}
WHOLE, SPLIT, PRODUCTS = (Config.of(variant=name) for name in ("whole", "split", "products"))
PRODUCT = Config.of(BLOCK_M=16, BLOCK_C=16, BLOCK_K=16)
# Tokens of a group: fewer than a tile, as many, several tiles with a remainder.
GRIDS = [(1, 1), (3, 1), (4, 4), (5, 7)]
FORWARD_CASES = {
    "whole, groups share a tile": {
        configs.FORWARD: WHOLE,
        configs.WHOLE: Config.of(BLOCK_M=64, BLOCK_C=16),
    },
    "whole, tiles of a group": {
        configs.FORWARD: WHOLE,
        configs.WHOLE: Config.of(BLOCK_M=16, BLOCK_C=32),
    },
    "split": {
        configs.FORWARD: SPLIT,
        configs.POOL: Config.of(BLOCK_M=8, BLOCK_C=16),
        configs.OUTPUT: Config.of(BLOCK_M=16, BLOCK_C=64),
    },
    "split, groups share a tile": {
        configs.FORWARD: SPLIT,
        configs.POOL: Config.of(BLOCK_M=64, BLOCK_C=16),
        configs.OUTPUT: Config.of(BLOCK_M=128, BLOCK_C=16),
    },
    "products": {
        configs.FORWARD: PRODUCTS,
        configs.POOL: Config.of(BLOCK_M=2, BLOCK_C=16),
        configs.CONTEXT: PRODUCT,
        configs.PROJECTION: PRODUCT,
    },
    "products, blocks wider than the tokens": {
        configs.FORWARD: PRODUCTS,
        configs.POOL: Config.of(BLOCK_M=32, BLOCK_C=16),
        configs.CONTEXT: Config.of(BLOCK_M=32, BLOCK_C=64, BLOCK_K=64),
        configs.PROJECTION: Config.of(BLOCK_M=64, BLOCK_C=64, BLOCK_K=64),
    },
}
BACKWARD_CASES = {
    "small blocks": {
        configs.GATE_BACKWARD: PRODUCT,
        configs.QUERY_BACKWARD: Config.of(BLOCK_M=4),
        configs.INPUT_BACKWARD: PRODUCT,
    },
    "groups share a tile": {
        configs.GATE_BACKWARD: Config.of(BLOCK_M=64, BLOCK_C=32, BLOCK_K=16),
        configs.QUERY_BACKWARD: Config.of(BLOCK_M=64),
        configs.INPUT_BACKWARD: Config.of(BLOCK_M=128, BLOCK_C=16, BLOCK_K=64),
    },
}


def forced(case: dict[str, Config]) -> ExitStack:
    """Inside, these families run with these configurations."""
    stack = ExitStack()
    for family, config in case.items():
        stack.enter_context(force_config(family, config))
    return stack


def gradients(
    problem: Problem, grad_out: Tensor, mask: tuple[bool, bool] = (True, True)
) -> tuple[Tensor, ...]:
    """All gradients, after a forward pass."""
    saved = problem.call(separable_attn_forward)[1:]
    return separable_attn_backward(grad_out, *problem.tensors[:4], *saved, *problem.args, mask)


def statistics(problem: Problem) -> list[Tensor]:
    """Scores, pooled tokens and contexts of the definition in float64."""
    x, weight, bias = (tensor.double() for tensor in problem.tensors[:3])
    channels = x.shape[1]
    tokens = reference.unfold(x, problem.args[0]).permute(0, 2, 3, 1)  # [B, P, N, C]
    rows = weight.flatten(1)
    scores = (tokens @ rows[0]).softmax(-1)
    pooled = (scores[..., None] * tokens).sum(2)
    return [scores, pooled, pooled @ rows[1 : 1 + channels].T + bias[1 : 1 + channels]]


def assert_close(actual: Tensor, truth: Tensor, dtype: torch.dtype) -> None:
    """Within the tolerance of a dtype, relative to the largest value."""
    scale = max(1.0, truth.abs().max().item())
    torch.testing.assert_close(actual.double(), truth, rtol=0, atol=scale * TOLERANCES[dtype])


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the interpreter computes."""
    return request.param


# 20: one piece, padded; 40: two pieces, the second padded.
@pytest.mark.parametrize("channels", [20, 40])
@pytest.mark.parametrize("case", list(FORWARD_CASES))
def test_forward_configurations(case: str, channels: int, dtype: torch.dtype) -> None:
    for grid in GRIDS:
        problem = make_separable(channels=channels, grid=grid, patch=(2, 1), dtype=dtype)
        with forced(FORWARD_CASES[case]), poisoned_memory():
            out, *saved = problem.call(separable_attn_forward)
            assert torch.equal(problem.call(separable_attn), out)
        assert_close(out, problem.map_tensors(Tensor.double).reference(), dtype)
        for actual, truth in zip(saved, statistics(problem), strict=True):
            assert actual.dtype == torch.float32
            assert_close(actual, truth, dtype)


@pytest.mark.parametrize("channels", [20, 40])
@pytest.mark.parametrize("case", list(BACKWARD_CASES))
def test_backward_configurations(case: str, channels: int, dtype: torch.dtype) -> None:
    for grid in GRIDS:
        problem = make_separable(channels=channels, grid=grid, patch=(2, 1), dtype=dtype)
        grad_out = torch.randn_like(problem.tensors[0])
        with forced(BACKWARD_CASES[case]), poisoned_memory():
            grads = gradients(problem, grad_out)
        wide = problem.map_tensors(Tensor.double)
        truths = wide.gradients(Problem.reference, grad_out.double())
        for actual, truth in zip(grads, truths, strict=True):
            assert_close(actual, truth, dtype)


@pytest.mark.parametrize("case", list(FORWARD_CASES))
def test_biases_may_be_absent(case: str) -> None:
    problem = make_separable(channels=20, grid=(5, 7), bias=False)
    with forced(FORWARD_CASES[case]):
        assert_close(
            problem.call(separable_attn), problem.map_tensors(Tensor.double).reference(), torch.float32
        )


@pytest.mark.parametrize("case", list(FORWARD_CASES))
@pytest.mark.parametrize("grid", [(3, 1), (5, 7)], ids=str)
def test_nan_stays_in_its_group(case: str, grid: tuple[int, int]) -> None:
    problem = make_separable(channels=20, grid=grid, patch=(2, 1))
    x = problem.tensors[0]
    touched = torch.zeros_like(x, dtype=torch.bool)
    touched[1, :, 1::2] = True
    poisoned = x.clone()
    poisoned[1, 4, 1, 0] = torch.nan
    grad_out = torch.randn_like(x)
    with forced({**FORWARD_CASES[case], **BACKWARD_CASES["groups share a tile"]}):
        clean, spoiled = (p.call(separable_attn) for p in (problem, problem.with_first(poisoned)))
        grad, spoiled_grad = (gradients(p, grad_out)[0] for p in (problem, problem.with_first(poisoned)))
    for one, other in ((clean, spoiled), (grad, spoiled_grad)):
        assert torch.equal(one[~touched], other[~touched])
        assert other[touched].isnan().all()


@pytest.mark.parametrize("case", list(FORWARD_CASES))
def test_scores_of_minus_infinity(case: str) -> None:
    """A block of scores that are all -inf before finite ones weighs nothing; only such scores give NaN."""
    problem = make_separable(batch=1, channels=20, grid=(20, 1), patch=(1, 1), dtype=torch.float32)
    x, weight = problem.tensors[:2]
    weight[:, 0] = 0.0
    weight[0, 0] = 1.0
    x[:, 0, :17] = torch.finfo(torch.float32).min
    weight[0, 1] = 2.0
    x[:, 1, :17] = torch.finfo(torch.float32).min
    with forced(FORWARD_CASES[case]):
        out = problem.call(separable_attn)
        assert torch.isfinite(out[:, :, 17:]).all()
        kept = problem.call(separable_attn_forward)[1]
        assert torch.equal(kept[..., :17], torch.zeros(1, 1, 17))
        torch.testing.assert_close(kept.sum(-1), torch.ones(1, 1))
        x[:, :2] = torch.finfo(torch.float32).min
        assert problem.call(separable_attn).isnan().all()


@pytest.mark.parametrize("layout", ["nchw", "channel_slice", "column_step", "same_samples", "same_channels"])
def test_layouts(layout: str) -> None:
    problem = make_separable(batch=3, channels=20, grid=(3, 2))
    problem = problem.with_first(LAYOUTS[layout](problem.tensors[0]))
    dense = problem.with_first(problem.tensors[0].clone(memory_format=torch.channels_last))
    grad_out = LAYOUTS[layout](torch.randn(3, 20, 6, 4))
    dense_grad = grad_out.clone(memory_format=torch.channels_last)
    for case in ("whole, groups share a tile", "split", "products"):
        with forced(FORWARD_CASES[case]):
            assert torch.equal(problem.call(separable_attn), dense.call(separable_attn))
    for one, other in zip(gradients(problem, grad_out), gradients(dense, dense_grad), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mask", [(True, False), (False, True), (False, False)], ids=str)
def test_only_what_is_wanted_is_computed(mask: tuple[bool, bool]) -> None:
    problem = make_separable(channels=20, grid=(5, 7), patch=(2, 1))
    grad_out = torch.randn_like(problem.tensors[0])
    everything = gradients(problem, grad_out)
    wanted = (mask[0], *[mask[1]] * 4)
    for grad, full, want in zip(gradients(problem, grad_out, mask), everything, wanted, strict=True):
        assert torch.equal(grad, full) if want else grad.numel() == 0


@pytest.mark.parametrize("case", list(BACKWARD_CASES))
def test_the_same_bits_again(case: str) -> None:
    problem = make_separable(channels=20, grid=(5, 7), patch=(2, 1))
    grad_out = torch.randn_like(problem.tensors[0])
    with forced(BACKWARD_CASES[case]):
        first, second = (gradients(problem, grad_out) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_gradient_through_a_saturated_softmax() -> None:
    """One score is nearly 1: what is left of its gradient is a small difference of large terms, then times 100."""
    problem = make_separable(batch=1, channels=20, grid=(3, 3), patch=(1, 1))
    x, weight, bias = problem.tensors[:3]
    weight[0] = 0.0
    weight[0, 0] = 100.0
    weight[21:] = 0.0  # every value is its bias: only the path through the scores is left
    bias[21:] = 1.0
    x[:, 0] = 0.0
    x[:, 0, 1, 1] = 0.08
    x[:, 1:] *= 10.0
    grad_out = torch.randn_like(x)
    truth = problem.map_tensors(Tensor.double).gradients(Problem.reference, grad_out.double())[0]
    error = (gradients(problem, grad_out)[0].double() - truth).abs().max()
    assert error < 2e-6 * truth.abs().max()


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_shape_has_candidates_that_fit(target: str, itemsize: int) -> None:
    for channels in (1, 30, 64, 96, 192, 256, 257, 512, 3000):
        for tokens, groups in ((1, 4), (16, 4), (49, 1024), (4096, 4)):
            shape = configs.Shape(groups, tokens, channels, itemsize, False, TARGETS[target])
            forms = {config.variant for config in configs.forward_candidates(shape)}
            assert ("whole" in forms) == (channels <= 256)
            if channels <= 256:
                assert configs.whole_candidates(shape)
                assert configs.output_candidates(shape)
            for config in (*configs.pool_candidates(shape), *configs.query_backward_candidates(shape)):
                assert config["BLOCK_M"] * channels <= 16384 or config["BLOCK_M"] == 1
                assert shape.tiles(config["BLOCK_M"]) * config["BLOCK_M"] >= groups * tokens

"""The benchmarks' own parts: shapes that the models have, peers that are right, a gate that closes."""

import dataclasses

import pytest
import torch

from bench.problems import stage_problem
from bench.shapes import STAGE_SHAPES, StageShape
from mobilevit_kernels.benchmark import timing as timing_module
from mobilevit_kernels.benchmark.candidates import OURS
from mobilevit_kernels.benchmark.gate import Gate, error_limit, relative_error
from mobilevit_kernels.benchmark.networks import model_problem
from mobilevit_kernels.benchmark.timing import (
    busy_processors,
    num_threads,
    settled_seconds_per_call,
    time_in_turn,
)

ATTENTION = StageShape("unfold_attn_fold", "a small one", channels=24, side=8, num_heads=2)
SEPARABLE = StageShape("separable_attn", "a small one", channels=20, side=8)


def transformer_maps_of_timm(name: str) -> list[tuple[int, int]]:
    """(channels, side) of every map that timm's model unfolds, at 256 pixels, without computing anything."""
    timm = pytest.importorskip("timm")
    maps: list[tuple[int, int]] = []
    with torch.device("meta"):
        model = timm.create_model(name)
        for module in model.modules():
            if hasattr(module, "transformer"):
                module.conv_1x1.register_forward_hook(
                    lambda _, args, out: maps.append((out.shape[1], out.shape[3]))
                )
        model(torch.empty(1, 3, 256, 256))
    return maps


@pytest.mark.parametrize("model", sorted({shape.model for shape in STAGE_SHAPES}))
def test_shapes_are_those_of_timm(model):
    ours = [(shape.channels, shape.side) for shape in STAGE_SHAPES if shape.model == model]
    assert ours == transformer_maps_of_timm(model)


@pytest.mark.parametrize("shape", [ATTENTION, SEPARABLE], ids=lambda shape: shape.op)
def test_every_peer_computes_the_same(shape):
    problem = stage_problem(shape, batch=2, dtype=torch.float32)
    truth = problem.truth.results("forward+backward")
    assert len(truth) == len(problem.quantities)
    assert len(problem.candidates) > 2
    for candidate in problem.candidates.values():
        for expected, actual in zip(truth, candidate.results("forward+backward"), strict=True):
            assert relative_error(actual, expected) < 1e-5


@pytest.mark.parametrize(
    ("name", "direction"),
    [("mobilevit_xxs", "forward"), ("mobilevitv2_050", "forward+backward"), ("mobilevitv3_050", "forward")],
)
def test_model_peers_compute_the_same(name, direction):
    problem = model_problem(name, 2, torch.float32, direction, image_side=64)
    assert Gate(problem, torch.float32, direction).check().passed
    truth = problem.truth.results(direction)
    assert len(truth) == (1 if direction == "forward" else len(problem.quantities))
    assert torch.isfinite(truth[0]).all()


def with_ours(problem, change):
    """The problem with ``change`` applied to what ours returns."""
    call = problem.ours.call
    return dataclasses.replace(problem, ours=dataclasses.replace(problem.ours, call=lambda: change(call())))


@pytest.mark.parametrize("shape", [ATTENTION, SEPARABLE], ids=lambda shape: shape.op)
@pytest.mark.parametrize(
    ("change", "passes"),
    [
        (lambda out: out, True),
        (lambda out: out * (1 + 1e-4), False),
        (lambda out: out * float("nan"), False),
        (lambda out: out.roll(1, 0), False),
    ],
    ids=["unchanged", "off by 1e-4", "nan", "batch rolled"],
)
def test_gate_closes_on_a_wrong_output(shape, change, passes):
    problem = stage_problem(shape, batch=2, dtype=torch.float32)
    result = Gate(with_ours(problem, change), torch.float32, "forward").check()
    assert result.passed is passes
    assert result.quantity == "out"


def test_gate_closes_on_a_wrong_gradient():
    class WrongGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, out):
            return out.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.001

    problem = with_ours(stage_problem(SEPARABLE, batch=2, dtype=torch.float32), WrongGradient.apply)
    assert Gate(problem, torch.float32, "forward").check().passed
    result = Gate(problem, torch.float32, "forward+backward").check()
    assert not result.passed
    assert result.quantity.startswith("grad ")


@pytest.mark.parametrize(
    "change", [lambda grad: grad * float("nan"), lambda grad: grad * 1.1], ids=["nan", "10 %"]
)
def test_gate_closes_on_one_bad_gradient_among_many(change):
    problem = model_problem("mobilevit_xxs", 1, torch.float32, "forward+backward", image_side=64)
    gate = Gate(problem, torch.float32, "forward+backward")
    largest = max(problem.truth.results("forward+backward")[1:], key=lambda grad: grad.abs().max())
    spoiled = next(leaf for leaf in problem.ours.leaves if leaf.shape == largest.shape)
    spoiled.register_hook(change)
    result = gate.check()
    assert not result.passed
    assert result.quantity == "gradients"


def test_error_limit_is_2_times_plain_pytorch_and_3_times_for_gradients():
    eps = torch.finfo(torch.bfloat16).eps
    assert error_limit(0.25, torch.bfloat16, is_gradient=False) == 0.5 + eps
    assert error_limit(0.25, torch.bfloat16, is_gradient=True) == 0.75 + eps


def test_timing_runs_the_functions_in_turn_and_restores_threads():
    order: list[str] = []
    before = torch.get_num_threads()
    with num_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        timings = time_in_turn(
            {
                name: lambda name=name: [order.append(name), torch.zeros(1 << 21).exp_()]
                for name in (OURS, "peer")
            },
            budget_s=0.0,
            min_rounds=4,
        )
    assert torch.get_num_threads() == before
    for timing in timings.values():
        assert timing.rounds == 4
        assert 0 < timing.q1_s <= timing.median_s <= timing.q3_s
    rounds = [timings[name].calls_per_round * [name] for name in (OURS, "peer")]
    assert order[-len(sum(rounds, [])) :] == sum(rounds, [])


def test_a_settled_sample_has_one_call_that_does_not_count(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing_module.time, "sleep", lambda seconds: calls.append("pause"))

    def function():
        clock[0] += 100.0 if calls == ["pause"] else 2.0
        calls.append("call")

    assert settled_seconds_per_call(function, 3) == 2.0
    assert calls == ["pause", *4 * ["call"]]


def test_busy_processors_are_seconds_of_the_process_over_seconds_of_the_clock(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(timing_module.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(timing_module.time, "process_time", lambda: 1.5 * clock[0])

    def function():
        clock[0] += 0.03

    assert busy_processors(function) == pytest.approx(1.5)

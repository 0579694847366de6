"""Cases of the GPU report on a stand-in for CUDA: events, graphs and memory are simulated on the CPU."""

import contextlib
import time

import pytest
import torch

from bench.case import Case
from bench.gpu.limits import copy_rate
from bench.gpu.meters import Meter
from bench.gpu.model_case import measure_model
from bench.gpu.op_case import Rates, measure_op
from bench.model_steps import STEPS, TrainingStep
from bench.shapes import StageShape

ATTENTION = StageShape("unfold_attn_fold", "a small one", channels=24, side=8, num_heads=2)
SEPARABLE = StageShape("separable_attn", "a small one", channels=20, side=8)
RATES = Rates(copy=1e10, matrix={"fp32": 1e11, "bf16": 1e11})


class FakeEvent:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.at = time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


class FakeStream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        assert isinstance(other, FakeStream)


class FakeGraph:
    replays = 0

    def replay(self):
        FakeGraph.replays += 1


@pytest.fixture
def meter(monkeypatch):
    """A meter that takes the paths of CUDA; its replays leave the results of the capture."""
    memory = iter(range(1000, 10**9, 1000))
    fakes = {
        "Event": FakeEvent,
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": lambda graph: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "current_stream": FakeStream,
        "synchronize": lambda device: None,
        "empty_cache": lambda: None,
        "memory_reserved": lambda device: next(memory),
        "max_memory_reserved": lambda device: next(memory),
        "reset_peak_memory_stats": lambda device: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    FakeGraph.replays = 0
    meter = Meter(torch.device("cpu"))
    meter.is_cuda = True
    return meter


@pytest.mark.parametrize("shape", [ATTENTION, SEPARABLE], ids=lambda shape: shape.op)
@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize(("batch", "modes"), [(1, {"eager", "graph"}), (32, {"eager", "cold"})])
def test_op(meter, shape, direction, batch, modes):
    record = measure_op(Case(shape, "fp32", batch, direction), meter, RATES, 0.0, 2, compile_mode=None)
    assert set(record["modes"]) == modes
    assert record["gates"]["ours"]["passed"]
    assert FakeGraph.replays > 0
    for mode in record["modes"].values():
        assert mode["best_ours"] == "ours"
        assert mode["speedup"] > 0
        assert mode["limit_fractions"]["nearer"] > 0
        assert set(mode["timings"]) == set(record["memory_bytes"])
    if shape.op == "unfold_attn_fold":
        assert {"SDPA cudnn NCHW", "SDPA efficient NHWC"} <= set(record["refused"])
        assert {"SDPA math NCHW", "SDPA flash NHWC"} <= set(record["memory_bytes"])


def test_a_replay_that_gives_other_numbers_closes_the_gate(meter, monkeypatch):
    true_capture = meter.captured

    def wrong_capture(function):
        replay, stored = true_capture(function)
        return replay, stored * 1.01

    monkeypatch.setattr(meter, "captured", wrong_capture)
    record = measure_op(Case(ATTENTION, "fp32", 1, "forward"), meter, RATES, 0.0, 2, compile_mode=None)
    assert not record["gates"]["ours"]["passed"]
    assert all(mode["speedup"] is None for mode in record["modes"].values())


@pytest.mark.parametrize("direction", ["inference", "training step"])
def test_model(meter, direction):
    case = Case("mobilevit_xxs", "fp32", 2, direction)
    record = measure_model(case, meter, 64, 0.0, 2, compile_mode=None)
    (mode,) = record["modes"].values()
    ours = {"ours eager NHWC", "ours eager NCHW", "ours graph NHWC"}
    assert {name for name in mode["timings"] if name.startswith("ours")} == ours
    assert set(record["gates"]) == ours
    # A simulated replay computes nothing: logits are right already, but no training step is taken.
    idle = {"ours graph NHWC"} if direction == "training step" else set()
    assert {name for name, gate in record["gates"].items() if not gate["passed"]} == idle
    assert mode["best_ours"] in ours - idle
    assert set(record["memory_bytes"]) == set(mode["timings"])


def test_a_model_whose_loss_goes_elsewhere_fails_its_gate(meter, monkeypatch):
    class Wrong(TrainingStep):
        def __init__(self, variant, *arguments):
            super().__init__(variant, *arguments)
            self.factor = 1.1 if variant.name.startswith("ours") else 1.0

        def __call__(self):
            return super().__call__() * self.factor

    monkeypatch.setitem(STEPS, "training step", Wrong)
    record = measure_model(Case("mobilevit_xxs", "fp32", 2, "training step"), meter, 64, 0.0, 2, None)
    gate = record["gates"]["ours eager NHWC"]
    assert not gate["passed"]
    assert gate["quantity"] == "loss after 6 steps"
    assert record["modes"]["step"]["speedup"] is None


def test_copy_rate_counts_bytes_read_and_written():
    calls = []

    def sample(function, count):
        calls.append(count)
        function()
        return 0.5

    assert copy_rate(torch.device("cpu"), 1000, 0.0, sample) == 2 * 1000 / 0.5

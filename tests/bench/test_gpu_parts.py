"""The parts of the GPU report: limits, the order of cases, the deadline, clocks, refusals, the tests' outcome."""

import signal
import time

import pytest
import torch

from bench.gpu.budget import Budget, OutOfTime, time_limit
from bench.gpu.checks import count_outcomes, run_tests
from bench.gpu.facts import parse_smi, smi_facts
from bench.gpu.limits import Limits, moved_bytes
from bench.gpu.measure import DeviceLost, noted_refusal
from bench.gpu.meters import Meter, Refused, Scoped
from bench.gpu.plan import FIRST_MODELS, full_plan, select
from bench.shapes import STAGE_SHAPES, StageShape, unique_shapes

ATTENTION = StageShape("unfold_attn_fold", "mobilevit_s", channels=144, side=32, num_heads=4)
SEPARABLE = StageShape("separable_attn", "mobilevitv2_100", channels=128, side=32)


class TestLimits:
    def test_bytes_of_attention(self):
        elements = 256 * 144 * 32 * 32
        assert moved_bytes(ATTENTION, 256, 2, "forward") == (4 * elements * 2, 4 * elements * 2)
        once, _ = moved_bytes(ATTENTION, 256, 2, "forward+backward")
        logsumexp = 4 * 256 * 32 * 32 * 4
        assert once == 12 * elements * 2 + 2 * logsumexp

    def test_bytes_of_separable(self):
        elements, weights = 8 * 128 * 32 * 32, 3 * 128**2 + 3 * 128 + 1
        once, repeated = moved_bytes(SEPARABLE, 8, 4, "forward")
        assert once == (2 * elements + weights) * 4
        assert repeated - once == elements * 4
        both, both_repeated = moved_bytes(SEPARABLE, 8, 4, "forward+backward")
        scores = 8 * 32 * 32 * 4
        assert both == (5 * elements + 3 * weights) * 4 + 2 * scores
        assert both_repeated - both == 3 * elements * 4

    def test_the_nearer_limit_is_the_larger_fraction(self):
        limits = Limits(bytes_moved=2e9, repeated_bytes=3e9, flops=1e12, copy_rate=2e12, matrix_rate=5e14)
        assert limits.fractions(4e-3) == {
            "copy": pytest.approx(0.25),
            "copy, second pass": pytest.approx(0.375),
            "matrix": pytest.approx(0.5),
            "nearer": pytest.approx(0.5),
        }


class TestPlan:
    def test_first_come_the_first_models_stages_at_the_largest_batch(self):
        plan = full_plan()
        first = plan[:12]
        assert {one.case.model for one in first} == set(FIRST_MODELS)
        assert all(one.is_op and one.case.batch == 256 and one.case.dtype == "fp16" for one in first)
        assert not plan[12].is_op

    def test_every_case_is_planned_once(self):
        plan = full_plan()
        assert len(set(map(str, plan))) == len(plan)
        ops = {str(one) for one in plan if one.is_op and not one.compiled}
        assert len(ops) == len(unique_shapes(STAGE_SHAPES)) * 3 * 3 * 2
        models = {(one.case.dtype, one.case.batch, one.case.direction) for one in plan if not one.is_op}
        assert models >= {(dtype, batch, "inference") for dtype in ("fp16", "bf16") for batch in (1, 32, 256)}
        assert models >= {(dtype, 128, "training step") for dtype in ("fp16", "bf16")}

    def test_equal_shapes_of_two_models_are_one(self):
        twin = StageShape("separable_attn", "another", channels=128, side=32)
        assert unique_shapes([SEPARABLE, twin, ATTENTION]) == (SEPARABLE, ATTENTION)

    def test_selection(self):
        plan = full_plan()
        assert all(one.is_op and not one.compiled for one in select(plan, "C144", ["ops"], False))
        assert select(plan, "no such case", ["ops", "models"], True) == []
        assert {one.kind for one in select(plan, "", ["models"], True)} == {"model", "model compiled"}


class FakeClock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class TestBudget:
    def test_what_does_not_fit_is_not_started(self):
        clock = FakeClock()
        budget = Budget(60, clock)
        assert budget.fits("op", 50)
        clock.now += 20
        assert not budget.fits("op", 50)
        assert budget.left_s == 40

    def test_prediction_follows_what_cases_took(self):
        budget = Budget(60, FakeClock())
        assert budget.predict("op", 50) == 50
        budget.observe("op", 2.0)
        budget.observe("op", 4.0)
        assert 3.0 < budget.predict("op", 50) < 6.0
        assert budget.predict("model", 50) == 50

    def test_time_limit_stops_a_block(self):
        with pytest.raises(OutOfTime) as raised, time_limit(0.05, "too slow"):
            time.sleep(10)
        assert raised.value.reason == "too slow"
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0

    def test_inner_limit_leaves_the_outer_one_running(self):
        def run():
            with time_limit(0.3, "outer"):
                with pytest.raises(OutOfTime) as inner, time_limit(0.05, "inner"):
                    time.sleep(10)
                assert inner.value.reason == "inner"
                time.sleep(10)

        with pytest.raises(OutOfTime) as raised:
            run()
        assert raised.value.reason == "outer"

    def test_an_earlier_outer_limit_counts(self):
        with pytest.raises(OutOfTime) as raised, time_limit(0.05, "outer"), time_limit(10, "inner"):
            time.sleep(10)
        assert raised.value.reason == "outer"


class TestRefusals:
    def test_reason_and_warnings_are_noted(self):
        refused = {}
        with noted_refusal(refused, "peer", Meter(torch.device("cpu"))):
            torch.nn.functional.scaled_dot_product_attention(torch.ones(2), torch.ones(2), torch.ones(2))
        assert list(refused) == ["peer"]
        assert refused["peer"]

    def test_a_slow_compilation_is_a_refusal_and_the_end_of_the_run_is_not(self):
        refused, meter = {}, Meter(torch.device("cpu"))
        with noted_refusal(refused, "peer", meter), time_limit(0.02, "compilation took too long"):
            time.sleep(10)
        assert refused == {"peer": "compilation took too long"}
        with pytest.raises(OutOfTime), noted_refusal(refused, "peer", meter), time_limit(0.02):
            time.sleep(10)

    def test_a_lost_device_is_not_a_refusal(self, monkeypatch):
        meter = Meter(torch.device("cpu"))
        monkeypatch.setattr(meter, "is_lost", lambda: True)
        with (
            pytest.raises(DeviceLost, match="peer: RuntimeError: CUDA error"),
            noted_refusal({}, "peer", meter),
        ):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def test_graphs_need_cuda(self):
        with pytest.raises(Refused, match="CUDA graphs need a CUDA device"):
            Meter(torch.device("cpu")).captured(lambda: None)


def test_scope_is_entered_once_a_sample_and_around_every_call():
    events = []

    class Scope:
        def __enter__(self):
            events.append("enter")

        def __exit__(self, *error):
            events.append("exit")

    meter = Meter(torch.device("cpu"))
    seconds = meter.sampler(cold=False)(Scoped(lambda: events.append("call"), Scope), 3)
    assert events == ["enter", "call", "call", "call", "exit"]
    assert seconds > 0
    assert meter.sampler(cold=True)(Scoped(lambda: time.sleep(0.01)), 2) > 0.009


class TestChecks:
    TEXT = """\
tests/gpu/test_a.py::test_one[1x1-a b] PASSED [ 10%]
[gw3] [ 50%] FAILED tests/gpu/test_a.py::test_two
tests/gpu/test_a.py::test_three SKIPPED (needs two GPUs) [ 60%]
tests/gpu/test_a.py::test_four ERROR [ 70%]
tests/gpu/test_a.py::test_five
=========================== short test summary info ============================
FAILED tests/gpu/test_a.py::test_two - AssertionError
"""

    def test_outcomes_are_counted_once_even_where_pytest_was_stopped(self):
        counted = count_outcomes(self.TEXT)
        assert counted["counts"] == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
        assert [failure.split(" ")[0] for failure in counted["failures"]] == ["FAILED", "ERROR"]

    def test_pytest_is_stopped_at_its_limit(self, tmp_path):
        tests = run_tests(tmp_path, 0.2, "cpu", "no test has this name")
        assert tests["finished"] is False
        assert tests["seconds"] < 5
        assert (tmp_path / "tests.txt").is_file()


def test_nvidia_smi_is_read_where_there_is_one(monkeypatch):
    assert parse_smi("580.10, 1980, 2619, 345, 700.00, 71.5, 33\n")["power limit, W"] == "700.00"
    monkeypatch.setenv("PATH", "")
    assert smi_facts("GPU-0") == {}

"""Peers besides eager PyTorch: who is absent and why, and that those present compute the network."""

import importlib.util

import pytest
import torch
from torch import nn

from mobilevit_kernels.benchmark import engine as engine_module
from mobilevit_kernels.benchmark.candidates import Candidate, Problem
from mobilevit_kernels.benchmark.compiled_engine import CompiledEngine
from mobilevit_kernels.benchmark.engine import missing_packages
from mobilevit_kernels.benchmark.engines import PEERS, engine_candidate, engines, with_engines
from mobilevit_kernels.benchmark.onnxruntime_engine import OnnxRuntimeEngine
from mobilevit_kernels.benchmark.openvino_engine import OpenVinoEngine
from mobilevit_kernels.benchmark.timing import num_threads


class Recorder:
    """An engine that notes how often it converts and for how many threads it builds."""

    name = "recorder"

    def __init__(self, reason=None):
        self.reason, self.conversions, self.builds = reason, 0, []

    def absence(self, dtype):
        return self.reason

    def prepare(self, network, inputs, dtype):
        self.conversions += 1

        def build(threads):
            self.builds.append(threads)
            return lambda: network(inputs)

        return build


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 5)).eval()


@pytest.fixture
def hide(monkeypatch):
    """Makes packages look as if they were not installed."""

    def hide_packages(*names):
        find = importlib.util.find_spec
        fake = lambda name: None if name in names else find(name)  # noqa: E731
        monkeypatch.setattr(engine_module.importlib.util, "find_spec", fake)

    return hide_packages


def test_choice_keeps_one_order_and_one_entry_per_compile_mode():
    assert engines([]) == []
    names = [engine.name for engine in engines(list(reversed(PEERS)), ["default", "max-autotune"])]
    assert names == ["torch.compile", "torch.compile max-autotune", "ONNX Runtime", "OpenVINO"]


def test_a_missing_package_is_named_with_the_extra_that_installs_it(hide):
    hide("onnxscript", "openvino")
    reason = "onnxscript not installed (pip install 'mobilevit-kernels[peers]')"
    assert missing_packages("torch", "onnxscript") == reason
    assert missing_packages("torch") is None
    assert "openvino not installed" in OpenVinoEngine().absence(torch.float32)
    assert "onnxscript" in OnnxRuntimeEngine().absence(torch.float32)


def test_onnxruntime_has_no_bfloat16(monkeypatch):
    monkeypatch.setattr(
        "mobilevit_kernels.benchmark.onnxruntime_engine.missing_packages", lambda *names: None
    )
    assert OnnxRuntimeEngine().absence(torch.float32) is None
    assert OnnxRuntimeEngine().absence(torch.bfloat16) == "no bfloat16 on the CPU"


def test_an_engine_converts_once_and_is_built_for_each_thread_count():
    recorder = Recorder()
    candidate = engine_candidate(recorder, small_network(), torch.rand(1, 3, 8, 8), torch.float32)
    for threads in (1, 1, 2):
        with num_threads(threads):
            candidate.forward()
    assert recorder.conversions == 1
    assert recorder.builds == [1, 2]


def test_absent_engines_leave_a_reason_and_present_ones_a_peer():
    nothing = Candidate("nobody", torch.empty, (), torch.empty(0))
    problem = Problem(("out",), nothing, (nothing,), nothing)
    absent, present = Recorder("out of order"), Recorder()
    absent.name = "absent"
    inputs = torch.rand(1, 3, 8, 8)
    grown = with_engines(problem, [absent, present], small_network(), inputs, torch.float32)
    assert grown.absent == {"absent": "out of order"}
    assert [runtime.name for runtime in grown.runtimes] == ["recorder"]
    assert problem.absent == {}


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine(), OpenVinoEngine()], ids=lambda engine: engine.name)
def test_a_runtime_computes_the_network(engine):
    if engine.absence(torch.float32):
        pytest.skip(engine.absence(torch.float32))
    network, inputs = small_network(), torch.rand(2, 3, 8, 8)
    candidate = engine_candidate(engine, network, inputs, torch.float32)
    with num_threads(1):
        torch.testing.assert_close(candidate.forward(), network(inputs), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_torch_compile_computes_the_network_without_changing_it():
    network, inputs = small_network(), torch.rand(2, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    candidate = engine_candidate(CompiledEngine("default"), network, inputs, torch.float32)
    with num_threads(1):
        torch.testing.assert_close(candidate.forward(), network(inputs), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())

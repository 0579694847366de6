"""Measures one case of a model: the gate, then every variant in turn, and the memory that each takes."""

import gc
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bench.case import Case
from bench.gpu.budget import time_limit
from bench.gpu.measure import Record, case_record, noted_refusal, time_mode
from bench.gpu.meters import WARMUP_CALLS, Meter
from bench.model_steps import STEPS, Variant, variants
from bench.shapes import ALL_DTYPES
from mobilevit_kernels.benchmark.candidates import Candidate, is_ours
from mobilevit_kernels.benchmark.gate import Gate, GateResult
from mobilevit_kernels.benchmark.networks import make_networks, network_problem

MODE = "step"
# float64 truth of more images would not fit beside the candidates.
_GATE_IMAGES = 8
_LOSS_STEPS = 2 * WARMUP_CALLS
# What the loss after a few steps may be off by, over that of plain PyTorch: one step more or less is 5 to 10 %.
_LOSS_TOLERANCE = 0.04
_COMPILE_LIMIT_S = 180.0

Run = Callable[[], Tensor]


def measure_model(
    case: Case,
    meter: Meter,
    image_side: int,
    budget_s: float,
    min_rounds: int,
    compile_mode: str | None,
) -> Record:
    """Gates and times one case of a model, under autocast where its dtype is a half.

    Inference: the first images' logits of every variant of ours pass the gate. Training: the gradients on a few images
    pass it, and the loss of every variant of ours after a few steps is plain PyTorch's.

    Args:
        case: the model, the autocast dtype, the batch and "inference" or "training step".
        meter: the device and its clocks.
        image_side: height and width of the images in pixels.
        budget_s: seconds of timing.
        min_rounds: fewest rounds.
        compile_mode: mode of ``torch.compile``; None leaves compiled variants out.
    """
    networks = make_networks(case.model)
    dtype = ALL_DTYPES[case.dtype]
    training = case.direction != "inference"
    images = torch.rand(case.batch, 3, image_side, image_side).to(meter.device)
    direction = "forward+backward" if training else "forward"
    problem = network_problem(
        networks, images[:_GATE_IMAGES], dtype, direction, autocast=dtype != torch.float32
    )
    torch.backends.cudnn.benchmark = False  # float64 convolutions run once each
    gate = Gate(problem, dtype, direction)
    torch.backends.cudnn.benchmark = True
    refused: dict[str, str] = {}
    memory: dict[str, int] = {}
    runs: dict[str, Run] = {}
    losses: dict[str, float] = {}
    for variant in variants(networks, compile_mode is not None):
        limit_s = _COMPILE_LIMIT_S if variant.compiled else float("inf")
        with noted_refusal(refused, variant.name, meter), time_limit(limit_s, "compilation took too long"):
            base = meter.reserved_bytes()
            step = STEPS[case.direction](variant, images, dtype, compile_mode or "default")
            run, out = _prepare(step, variant, meter)
            peak = meter.peak_bytes(run, base)
            if peak is not None:
                memory[variant.name] = peak
            runs[variant.name] = run
            losses[variant.name] = out.float().mean().item() if training else 0.0
        meter.release()
    ours = {name: run for name, run in runs.items() if is_ours(name)}
    gates = _training_gates(gate, losses) if training else _inference_gates(gate, problem.ours, ours)
    timings = time_mode(runs, meter, False, budget_s, min_rounds)
    return case_record(case, gates, {MODE: timings}, refused, memory)


def forget_compiled_code(meter: Meter) -> None:
    """Frees what compiled candidates hold: code, and the memory of their CUDA graphs."""
    torch.compiler.reset()
    gc.collect()
    meter.release()


def _prepare(step: Run, variant: Variant, meter: Meter) -> tuple[Run, Tensor]:
    """What is timed, and the result of the call number ``_LOSS_STEPS``."""
    if variant.how != "graph":
        for _ in range(_LOSS_STEPS):
            out = step()
        meter.synchronize()
        return step, out
    replay, stored = meter.captured(step)
    assert isinstance(stored, Tensor)

    def run() -> Tensor:
        replay()
        return stored

    for _ in range(_LOSS_STEPS - WARMUP_CALLS):
        out = run()
    return run, out.clone()


def _inference_gates(gate: Gate, ours: Candidate, runs: Mapping[str, Run]) -> dict[str, GateResult]:
    """The gate of every variant's own logits, of the images that the truth was computed for."""

    def first_logits(run: Run) -> Run:
        return lambda: run()[:_GATE_IMAGES]

    return {
        name: gate.check(Candidate(name, first_logits(run), ours.leaves, ours.grad_out))
        for name, run in runs.items()
    }


def _training_gates(gate: Gate, losses: Mapping[str, float]) -> dict[str, GateResult]:
    """The gate of the gradients for all variants of ours, and each one's loss after a few steps."""
    gradients = gate.check()
    peer = next((loss for name, loss in losses.items() if not is_ours(name)), float("nan"))
    gates = {}
    for name, loss in losses.items():
        if is_ours(name):
            error = abs(loss - peer) / abs(peer)
            passed = error <= _LOSS_TOLERANCE
            quantity = f"loss after {_LOSS_STEPS} steps"
            loss_gate = GateResult(passed, quantity, error, 0.0, _LOSS_TOLERANCE)
            gates[name] = gradients if passed or not gradients.passed else loss_gate
    return gates

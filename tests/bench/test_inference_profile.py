"""The profile of optimised models: counted operations are those that torch counts, and every op is listed."""

from pathlib import Path

import pytest
import torch
from block_problems import BlockProblem
from convolution_problems import ConvolutionProblem
from torch.utils.flop_counter import FlopCounterMode
from transformer_problems import TransformerProblem

from bench import inference_profile

PROBLEMS = {
    "mobilevit.convolution": ConvolutionProblem.random((2, 12, 8, 6), 20, 3, padding=1, stride=2),
    "mobilevit.inverted_residual": BlockProblem.random((2, 12, 8, 6), 40, 20, stride=2),
    "mobilevit.transformer": TransformerProblem.random("transformer", (2, 24, 8, 6)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    problem = PROBLEMS[name]
    with FlopCounterMode(display=False) as counter:
        problem.reference()
    assert inference_profile.FLOPS[name](*problem.arguments()) == counter.get_total_flops()


def test_operations_of_a_convolution_that_reads_two_maps() -> None:
    x, beside, packed = torch.zeros(2, 12, 8, 6), torch.zeros(2, 20, 8, 6), torch.zeros(0)
    convolution = inference_profile.FLOPS["mobilevit.convolution"]
    winograd = inference_profile.FLOPS["mobilevit.winograd_convolution"]
    assert convolution(x, packed, 5, 3, 1, 1, 1, True, beside) == 2 * 2 * 8 * 6 * 32 * 5 * 9
    assert winograd(x, packed, 5, True, beside) == 2 * 2 * 8 * 6 * 32 * 5 * 4


def test_profile_lists_every_op(tmp_path: Path) -> None:
    arguments = ["--smoke", "--models", "mobilevitv2_050", "--output", str(tmp_path)]
    assert inference_profile.main(arguments) == 0
    lines = (tmp_path / "inference_profile.md").read_text().splitlines()
    ops = [line for line in lines if line.startswith("| `mobilevit.") and " x " in line]
    kinds = ("separable_transformer", "inverted_residual", "depthwise_convolution", "convolution")
    assert [sum(f"mobilevit.{kind}`" in op for op in ops) for kind in kinds] == [3, 6, 3, 7]
    assert any(line.startswith("| whole model") for line in lines)


def test_bfloat16_has_a_rate_and_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(inference_profile, "matrix_rate", lambda dtype, threads: asked.append(dtype) or 1e9)
    arguments = ["--smoke", "--models", "mobilevitv2_050", "--dtype", "bf16", "--output", str(tmp_path)]
    assert inference_profile.main(arguments) == 0
    assert asked == [torch.bfloat16]
    text = (tmp_path / "inference_profile_bf16.md").read_text()
    assert "- optimised for: torch.bfloat16" in text
    assert "- matrix rate: 1 GFLOP/s" in text


def test_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    ops = [["a", "1", 100.0, 8, 2.0], ["b", "1", 10.0, 40, 4.0]]
    lines = inference_profile.table(ops, total_s=7.0, flops_per_s=100.0, bytes_per_s=10.0)
    assert "| `a` | 1 | 2000.000 | 1000.000 | 50% |" in lines
    assert "| `b` | 1 | 4000.000 | 4000.000 | 100% |" in lines
    assert "| between ops |  | 1000.000 | 0.000 |  |" in lines


def test_kernels_of_torch_count_their_bytes() -> None:
    with inference_profile.Recorder() as recorder:
        torch.ones(4, 4).t() + 1
    assert [call[0] for call in recorder.calls] == ["aten.ones", "aten.add"]
    assert recorder.calls[1][3] == 2 * 4 * 4 * 4

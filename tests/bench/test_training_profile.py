"""The profile of training steps: every op with its own time, and sums that add up."""

from pathlib import Path

import pytest
import torch

from bench import training_profile
from mobilevit_kernels import _C


def test_an_op_has_its_own_time_and_those_it_calls_have_theirs() -> None:
    x = torch.randn(256, 256)
    step_s, seconds = training_profile.profile(lambda: torch.nn.functional.linear(x, x), rounds=2)
    assert step_s > seconds["mm"] > seconds["linear"] > 0


def test_the_rows_add_up_to_the_step() -> None:
    seconds = {"mkldnn_convolution": 0.5, "copy_": 0.25, "add": 0.001, "mul": 0.002}
    head, _, *rows = training_profile.table(seconds, step_s=1.0, floor_s=0.4)
    assert head == "| op | ms | of the step |"
    assert rows == [
        "| `mkldnn_convolution` | 500.0 | 50.0% |",
        "| `copy_` | 250.0 | 25.0% |",
        "| others | 3.0 | 0.3% |",
        "| no op | 247.0 | 24.7% |",
        "| whole step | 1000.0 | 100.0% |",
        "| floor | 400.0 | 40.0% |",
    ]


@pytest.mark.parametrize(
    ("dtype", "file"), [("fp32", "training_profile.md"), ("bf16", "training_profile_bf16.md")]
)
def test_every_side_of_a_model_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, file: str
) -> None:
    monkeypatch.setattr(training_profile, "SMALL", 0.0)
    arguments = ["--smoke", "--models", "mobilevitv2_050", "--batch", "2", "--dtype", dtype]
    assert training_profile.main([*arguments, "--output", str(tmp_path)]) == 0
    ours, plain, accelerated = (tmp_path / file).read_text().split("## mobilevitv2_050, ")[1:]
    assert ours.startswith("ours")
    assert plain.startswith("timm")
    assert accelerated.startswith("timm after accelerate")
    for part in (ours, accelerated):
        assert "`mobilevit.separable_attn_backward`" in part
        assert "`mobilevit.depthwise_conv2d_backward`" in part
        # In 16 bits torch's own products are faster with matrix units.
        in_torch = dtype == "bf16" and _C.has_matrix_unit()
        assert ("`mobilevit.pointwise_conv2d_backward`" in part) != in_torch
    assert "mobilevit." not in plain
    for part in (ours, plain, accelerated):
        assert "| whole step |" in part
        assert "convolution_backward" in part

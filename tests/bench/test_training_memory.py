"""The peak of a training step, and the table that says so."""

from pathlib import Path

import pytest

from bench import training_memory
from bench.resident_memory import can_measure_peak
from mobilevit_kernels.benchmark.timm_models import import_timm

pytestmark = pytest.mark.skipif(
    not can_measure_peak() or import_timm() is None,
    reason="needs timm, and resident memory as Linux counts it",
)


def test_table(tmp_path: Path) -> None:
    """Of one model, whose step needs less memory on the ops than on plain PyTorch, whosever model it is."""
    assert training_memory.main(["--smoke", "--batch", "8", "--output", str(tmp_path)]) == 0
    (row,) = (
        line
        for line in (tmp_path / "training_memory.md").read_text().splitlines()
        if line.startswith("| mobile")
    )
    name, *numbers = row.strip("| ").split(" | ")
    ours, timm, timm_ratio, reference, reference_ratio = map(float, numbers)
    assert name == "mobilevit_xxs"
    assert 0 < ours < min(timm, reference)
    assert timm / ours == pytest.approx(timm_ratio, rel=0.01)
    assert reference / ours == pytest.approx(reference_ratio, rel=0.01)


def test_a_model_that_timm_has_not_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        training_memory.parse_arguments(["--models", "mobilevit_xxs", "mobilevitv3_s"])
    assert "expected models of an installed timm, got mobilevitv3_s" in capsys.readouterr().err

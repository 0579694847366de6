"""Images per second over the batch size: the table, the picture, and the command that measures them."""

import json
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from bench import compare, throughput
from bench.case import Case
from mobilevit_kernels.benchmark.gate import GateResult
from mobilevit_kernels.benchmark.rows import Row
from mobilevit_kernels.benchmark.timing import Timing


def make_row(batch: int, threads: int, passed: bool = True, **medians_s: float) -> Row:
    timings = {name: Timing(value, value, value, 5, 1) for name, value in medians_s.items()}
    gate = GateResult(passed, "logits", 1e-7 if passed else 1.0, 1e-7, 2e-7)
    case = Case("mobilevit_s", "fp32", batch, "inference")
    return Row(case, threads, gate, timings, flops=None, matrix_rate=1e11)


ROWS = [
    make_row(8, 1, ours=0.1, eager=0.4),
    make_row(1, 1, ours=0.02, eager=0.05),
    make_row(1, 2, passed=False, ours=0.01, eager=0.05),
]


def test_table_has_a_column_for_every_candidate_and_no_number_for_a_wrong_result() -> None:
    assert throughput.throughput_table(ROWS)[2:] == [
        "| what | dtype | threads | batch | ours | eager |",
        "|---|---|---|---|---|---|",
        "| mobilevit_s | fp32 | 1 | 8 | 80 | 20 |",
        "| mobilevit_s | fp32 | 1 | 1 | 50 | 20 |",
        "| mobilevit_s | fp32 | 2 | 1 |  | 20 |",
    ]


def test_picture_has_a_panel_per_thread_count_and_lines_in_order_of_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda figure, *args, **kwargs: (drawn.append(figure), save(figure, *args, **kwargs)),
    )
    throughput.plot_throughput(ROWS, "A Processor", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    lines = [
        {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()} for axes in drawn[0].axes
    ]
    assert lines == [
        {"ours": [[1, 50], [8, 80]], "eager": [[1, 20], [8, 20]]},
        {"eager": [[1, 20]]},
    ]


def test_command_measures_models_and_adds_images_per_second(tmp_path: Path) -> None:
    arguments = ["models", "--smoke", "--throughput", "--filter", "mobilevit_xxs fp32", "--threads", "1"]
    assert compare.main([*arguments, "--name", "small", "--output", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "small.json").read_text())["rows"]
    assert row["images_per_s"]["ours"] == pytest.approx(row["batch"] / row["timings"]["ours"]["median_s"])
    assert "## Images per second" in (tmp_path / "small.md").read_text()
    assert (tmp_path / "small_images.png").read_bytes().startswith(b"\x89PNG")


def test_other_levels_have_no_images_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.parse_arguments(["ops", "models", "--throughput"])
    assert "--throughput: expected the level models alone, got ops models" in capsys.readouterr().err

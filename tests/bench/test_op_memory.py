"""What the ops keep for their backward pass, and the table that says so."""

from pathlib import Path

import pytest
import torch

from bench import op_memory
from bench.problems import stage_problem
from bench.resident_memory import can_measure_peak
from bench.shapes import StageShape

FLOAT = 4


def test_attention_keeps_its_output_and_one_number_per_token_and_head() -> None:
    shape = StageShape("unfold_attn_fold", "any", 24, 16, num_heads=3)
    problem = stage_problem(shape, 2, torch.float32)
    pixels = 2 * 16 * 16
    assert op_memory.kept_bytes(problem.ours) == pixels * (24 + 3) * FLOAT


def test_separable_attention_keeps_one_number_per_token_and_two_vectors_per_group() -> None:
    shape = StageShape("separable_attn", "any", 24, 16)
    problem = stage_problem(shape, 2, torch.float32)
    assert op_memory.kept_bytes(problem.ours) == (2 * 16 * 16 + 2 * 4 * 2 * 24) * FLOAT
    assert all(op_memory.kept_bytes(peer) > 2 * 16 * 16 * 24 * FLOAT for peer in problem.peers)


@pytest.mark.skipif(not can_measure_peak(), reason="counts resident memory as Linux does")
def test_table(tmp_path: Path) -> None:
    assert op_memory.main(["--smoke", "--batch", "16", "--output", str(tmp_path)]) == 0
    rows = [line for line in (tmp_path / "op_memory.md").read_text().splitlines() if " | C" in line]
    assert [row.split(" | ")[0] for row in rows] == 2 * ["| separable_attn"] + 2 * ["| unfold_attn_fold"]
    assert all(float(row.split(" | ")[6]) > 0 for row in rows)

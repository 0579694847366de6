"""The comparison of attention units: all forms of a unit agree, and the files say what the published numbers are."""

import json

import pytest
import torch

from bench import attention_units
from bench.unit_problems import UNITS, UnitModelCase, make_unit, unit_flops, unit_problem
from mobilevit_kernels.benchmark.gate import Gate


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("tokens", [32, 64])
def test_ours_and_plain_pytorch_agree(unit, tokens):
    problem = unit_problem(unit, tokens, torch.float32)
    gate = Gate(problem, torch.float32, "forward")
    assert gate.check().passed
    assert gate.check(problem.peers[0]).error < 1e-5
    assert problem.truth.results("forward")[0].shape[1] == 512


def test_linformer_projects_to_at_most_256_tokens():
    assert make_unit("linformer", 64).key_proj.shape == (64, 64)
    assert make_unit("linformer", 1024).key_proj.shape == (256, 1024)


@pytest.mark.parametrize(("unit", "power"), [("mha", 2), ("linformer", 1), ("separable", 1)])
def test_operations_grow_as_the_paper_claims(unit, power):
    many = 1 << 24
    assert unit_flops(unit, 2 * many) / unit_flops(unit, many) == pytest.approx(2**power, rel=1e-3)


@pytest.mark.parametrize("unit", UNITS)
def test_models_hold_the_unit(unit):
    problem = UnitModelCase(unit, "fp32").problem(64)
    assert Gate(problem, torch.float32, "inference").check().passed


def test_smoke_writes_rows_table_and_pictures(tmp_path):
    status = attention_units.main(["--smoke", "--budget", "0.01", "--output", str(tmp_path)])
    assert status == 0
    rows = json.loads((tmp_path / "attention_units.json").read_text())["rows"]
    assert len(rows) == 2 * len(UNITS) + len(UNITS)
    text = (tmp_path / "attention_units.md").read_text()
    for unit, published in attention_units.PUBLISHED_MS.items():
        lines = [line for line in text.splitlines() if line.startswith(f"| {unit} | fp32 | 1 | ")]
        (line,) = [line for line in lines if line.endswith(f"| {published} |")]
        assert line.count("|") == 8
    assert "iPhone 12" in text
    for name in ("attention_units.png", "attention_units_tokens.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")

"""Every example runs as a user would run it, and what it prints is right."""

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit_kernels.models.checkpoints import convert_state_dict, save_checkpoint

Command = Callable[..., Any]
Example = Callable[..., str]

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Example:
    """Runs ``examples/NAME ARGS...`` in this process and returns what it printed."""

    def run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *(str(arg) for arg in args)])
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def _differences(out: str) -> list[float]:
    return [float(number) for number in re.findall(r"largest difference (\S+) of", out)]


def test_every_example_is_tested() -> None:
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (Path(__file__), *ROOT.glob("tests/examples/*.py"))
    )
    names = [path.name for path in EXAMPLES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")]
    assert len(names) >= 5
    assert [name for name in names if f'"{name}"' not in tests] == []


@pytest.mark.parametrize("model", ["mobilevit_xxs", "mobilevitv2_050"])
def test_accelerate_timm(example: Example, model: str) -> None:
    pytest.importorskip("timm")
    out = example("accelerate_timm.py", "--model", model, "--size", 64, "--repeats", 1)
    assert max(_differences(out)) < 1e-4
    assert re.search(r"accelerated +\d+\.\d ms", out)


def test_separable_layer_learns(example: Example) -> None:
    pytest.importorskip("sklearn")
    out = example("separable_layer_in_your_network.py", "--steps", 60)
    losses = [float(number) for number in re.findall(r"loss (\d+\.\d+)", out)]
    assert losses[-1] < 0.6 * losses[0]
    assert float(re.findall(r"accuracy (\d+\.\d)%", out)[0]) > 50


def test_classify_photo(
    example: Example, mobilevit: Command, timm_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    state = {**timm_state, "head.fc.weight": torch.randn(1000, 320), "head.fc.bias": torch.zeros(1000)}
    save_checkpoint(convert_state_dict(state, "cvnets"), weights)
    shown = re.findall(
        r"^ *(\S+%)  class (\d+)$", example("classify_photo.py", photo_file, "--weights", weights), re.M
    )
    expected = re.findall(
        r"^ +(\S+%) +(\d+)  ", mobilevit("classify", photo_file, "--weights", weights).out, re.M
    )
    assert shown == expected
    assert len(shown) == 5


def test_classify_photo_without_weights_says_so(example: Example, photo_file: Path) -> None:
    out = example("classify_photo.py", photo_file)
    assert "random weights: the classes below mean nothing" in out
    assert out.count("class ") == 5


def test_compile_and_export(example: Example, tmp_path: Path) -> None:
    out = example(
        "compile_and_export.py", "--size", 64, "--backend", "aot_eager", "--output", tmp_path / "model.pt2"
    )
    assert max(_differences(out)) < 1e-4
    assert len(_differences(out)) == 2
    assert "exported: 9 nodes of mobilevit.unfold_attn_fold.default" in out
    assert (tmp_path / "model.pt2").stat().st_size > 1_000_000

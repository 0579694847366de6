"""Every configuration that autotuning may choose is right, and what it chose is kept."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import assert_same_bits, everything, readable

pytestmark = pytest.mark.usefixtures("gpu_kernels")

Builder = Callable[..., Any]
SHAPES = [
    ("unfold_attn_fold", {"heads": 4, "head_dim": 36, "grid": (4, 4)}),
    ("unfold_attn_fold", {"heads": 4, "head_dim": 48, "grid": (8, 8)}),
    ("unfold_attn_fold", {"heads": 2, "head_dim": 60, "grid": (16, 16)}),
    ("separable_attn", {"channels": 64, "grid": (4, 4)}),
    ("separable_attn", {"channels": 128, "grid": (16, 16)}),
    ("separable_attn", {"channels": 384, "grid": (8, 8)}),
]
INDICES = range(3)
CHOICES = [
    (shaped_op, sizes, variant, index)
    for shaped_op, sizes in SHAPES
    for variant in (INDICES if shaped_op == "separable_attn" else [0])
    for index in INDICES
    if (variant, index) != (0, 0)  # what every other test runs
]


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], list[int]]:
    """Replaces autotuning by fixed choices: of variants alone, and of everything else. Returns the counts seen."""

    def install(variant: int, index: int) -> list[int]:
        counts: list[int] = []

        def choose(kernel: str, key: Any, candidates: Any, run: Any) -> Any:
            counts.append(len(candidates))
            only_variants = not any(candidate.constants for candidate in candidates)
            return candidates[(variant if only_variants else index) % len(candidates)]

        for module in list(sys.modules.values()):
            if getattr(module, "choose", None) is tuning.choose and module is not tuning:
                monkeypatch.setattr(module, "choose", choose)
        return counts

    tuning = pytest.importorskip("mobilevit_kernels.triton_kernels.tuning", reason="triton is not installed")
    return install


@pytest.mark.parametrize("low", [torch.float16, torch.float32], ids=readable)
@pytest.mark.parametrize(("shaped_op", "sizes", "variant", "index"), CHOICES, ids=str)
def test_every_candidate(
    shaped_op: str,
    sizes: dict[str, Any],
    variant: int,
    index: int,
    make_problem: Builder,
    low: torch.dtype,
    rule: Callable[[Any], None],
    gpu_kernels: str,
    take: Callable[[int, int], list[int]],
) -> None:
    if gpu_kernels != "triton":
        pytest.skip("only Triton's kernels have configurations")
    problem = make_problem(shaped_op, batch=1 if shaped_op == "unfold_attn_fold" else 2, dtype=low, **sizes)
    everything(problem)  # imports the kernels
    counts = take(variant, index)
    rule(problem)
    assert counts, "no configuration was chosen"
    assert max(counts) <= len(INDICES), "more candidates than are tested"


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("shaped_op", "sizes"), [SHAPES[1], SHAPES[4]], ids=readable)
def test_what_was_measured_is_kept(
    shaped_op: str,
    sizes: dict[str, Any],
    make_problem: Builder,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MOBILEVIT_TRITON_AUTOTUNE", "1")
    monkeypatch.setenv("MOBILEVIT_CACHE_DIR", str(tmp_path))
    problem = make_problem(shaped_op, batch=3, dtype=torch.float16, **sizes)
    first = everything(problem)
    (written,) = tmp_path.glob("triton-*.json")
    text = written.read_text()
    assert shaped_op in text
    assert_same_bits(everything(problem), first)
    assert written.read_text() == text

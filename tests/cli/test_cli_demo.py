"""``mobilevit demo``: what it compares, that it can fail, and its picture."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mobilevit_kernels
from mobilevit_kernels import reference
from mobilevit_kernels.cli.comparison import Comparison
from mobilevit_kernels.cli.scores import score_maps
from mobilevit_kernels.models import SeparableAttention
from mobilevit_kernels.models.checkpoints import save_checkpoint

Command = Callable[..., Any]

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")

TINY = ("--size", 64, "--repeats", 1)


def _is_drawn(path: Path) -> bool:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.load()
        return min(image.size) > 500 and np.asarray(image.convert("RGB")).std() > 20


def test_compares_and_draws(mobilevit: Command, tmp_path: Path) -> None:
    models = ("mobilevit_xxs", "mobilevitv2_050")
    code, out, err = mobilevit("demo", "--models", *models, *TINY, "--output", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    assert out.count("  PASS") == 2
    for model in models:
        assert model in out
    assert "'native' kernels against the plain PyTorch definition" in out
    assert "random, seeded" in out
    assert "%" not in out  # no classes without weights
    assert _is_drawn(tmp_path / "new" / "folder" / "demo.png")


def test_compares_the_kernels_whatever_backend_is_chosen(
    mobilevit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []
    plain = reference.unfold_attn_fold

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        return plain(*args)

    monkeypatch.setattr(reference, "unfold_attn_fold", counted)
    with mobilevit_kernels.use_backend("reference"):
        assert mobilevit("demo", "--models", "mobilevit_xxs", *TINY, "--output", tmp_path).code == 0
    # 9 layers: once for the BatchNorm statistics, once compared, 2 + 1 times timed, once for the score maps' search.
    assert len(calls) == 9 * 6


def test_a_wrong_attention_fails(mobilevit: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plain = reference.unfold_attn_fold

    def wrong(qkv: Tensor, num_heads: int, patch_size: tuple[int, int], scale: float | None) -> Tensor:
        head_dim = qkv.shape[1] // (3 * num_heads)
        return plain(qkv, num_heads, patch_size, 1.01 * head_dim**-0.5)

    monkeypatch.setattr(reference, "unfold_attn_fold", wrong)
    code, out, _ = mobilevit("demo", "--models", "mobilevit_xxs", *TINY, "--output", tmp_path)
    assert code == 1
    assert "  FAIL" in out
    assert _is_drawn(tmp_path / "demo.png")


def test_weights_are_used_and_classes_printed(
    mobilevit: Command, timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_checkpoint(timm_state, tmp_path / "weights.pt")
    code, out, err = mobilevit("demo", "--weights", tmp_path / "weights.pt", *TINY, "--output", tmp_path)
    assert (code, err) == (0, "")
    assert "mobilevit_xxs" in out
    assert "weights.pt" in out
    assert out.count("%") == 6 * 5
    assert "mobilevit_s " not in out


@pytest.mark.parametrize(
    ("weights", "reason"), [(True, "expected 12 class names"), (False, "no weights were given")]
)
def test_unusable_labels_are_refused_before_the_comparison(
    mobilevit: Command, weights: bool, reason: str, timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_checkpoint(timm_state, tmp_path / "weights.pt")
    (tmp_path / "names.txt").write_text("cat\n")
    option = ["--weights", tmp_path / "weights.pt"] if weights else []
    outcome = mobilevit("demo", *option, *TINY, "--labels", tmp_path / "names.txt", "--output", tmp_path)
    assert (outcome.code, outcome.out) == (1, "")
    assert reason in outcome.err


def test_threads_are_set_for_the_run_alone(
    mobilevit: Command, restored_threads: None, tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    outcome = mobilevit("demo", "--models", "mobilevit_xxs", *TINY, "--threads", 1, "--output", tmp_path)
    assert "channels_last, 1 thread\n" in outcome.out
    assert torch.get_num_threads() == 2


def test_unknown_model_and_unusable_folder(mobilevit: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unknown = mobilevit("demo", "--models", "mobilevit_xl", "--output", tmp_path)
    folder = mobilevit("demo", "--models", "mobilevit_xxs", "--output", tmp_path / "file" / "below")
    assert (unknown.code, folder.code) == (1, 1)
    assert "unknown model 'mobilevit_xl'; expected one of" in unknown.err
    assert "cannot make this folder" in folder.err


def test_verdict_is_relative_to_the_largest_logit_and_fails_on_nan() -> None:
    plain = torch.tensor([[1.0, -20.0], [3.0, 4.0]])

    def compared(difference: float) -> Comparison:
        return Comparison(
            "model", plain + torch.tensor([[0.0, 0.0], [difference, 0.0]]), plain, [2e-3], [3e-3]
        )

    assert compared(0.0019).passed
    assert not compared(0.0021).passed
    assert not compared(float("nan")).passed
    assert compared(0.5).differences.tolist() == [0.0, 0.5]
    assert compared(0.0).speedup == pytest.approx(1.5)


def test_score_maps_show_where_the_query_points() -> None:
    layer = SeparableAttention(4)
    nn.init.zeros_(layer.qkv_proj.weight)
    layer.qkv_proj.weight.data[0, 2] = 50.0  # the query is 50 times channel 2
    x = torch.zeros(2, 4, 8, 12)
    x[0, 2, 4:6, 2:4] = 1.0
    maps = score_maps(nn.Sequential(layer), x)
    assert maps is not None
    expected = torch.ones(2, 4, 6)  # the second image has no contrast: every patch is average
    expected[0] = 0
    expected[0, 2, 1] = 24  # all the weight of 4 x 6 patches
    torch.testing.assert_close(maps.maps, expected, atol=1e-5, rtol=0)


def test_no_score_maps_without_separable_attention() -> None:
    assert score_maps(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 4, 4)) is None

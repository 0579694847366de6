"""``mobilevit convert`` on files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.checkpoints import detect_format, read_checkpoint, save_checkpoint

Command = Callable[..., Any]


@pytest.fixture
def source(timm_state: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    save_checkpoint(timm_state, path)
    return path


def _assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, atol=0, rtol=0)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kind", ["cvnets", "hf", "timm"])
def test_round_trip_through_files(
    mobilevit: Command, kind: str, suffix: str, source: Path, timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.pth"
    code, out, err = mobilevit("convert", source, there, "--to", kind)
    assert (code, err) == (0, "")
    assert f"{source}: timm, mobilevit_xxs, {len(timm_state)} entries" in out
    assert f"{there}: {kind}, mobilevit_xxs" in out
    assert detect_format(read_checkpoint(there)) == kind
    assert mobilevit("convert", there, back, "--to", "timm").code == 0
    _assert_same(read_checkpoint(back), timm_state)


def test_training_form_is_reduced_to_its_averaged_weights(
    mobilevit: Command, timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    zeros = {key: torch.zeros_like(value) for key, value in timm_state.items()}
    torch.save({"epoch": 3, "state_dict": zeros, "state_dict_ema": timm_state}, tmp_path / "last.pth.tar")
    assert mobilevit("convert", tmp_path / "last.pth.tar", tmp_path / "out.pt", "--to", "timm").code == 0
    _assert_same(read_checkpoint(tmp_path / "out.pt"), timm_state)


def test_an_existing_file_is_kept_unless_forced(mobilevit: Command, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.pt"
    target.write_text("precious")
    code, _, err = mobilevit("convert", source, target, "--to", "hf")
    assert code == 1
    assert f"{target}: exists already" in err
    assert target.read_text() == "precious"
    assert mobilevit("convert", source, target, "--to", "hf", "--force").code == 0
    assert detect_format(read_checkpoint(target)) == "hf"


@pytest.mark.parametrize("kind", ["timm", "cvnets", "hf"])
def test_flip_reverses_the_first_convolution_alone(
    mobilevit: Command, kind: str, source: Path, timm_state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert mobilevit("convert", source, tmp_path / "out.pt", "--to", kind, "--flip-channels").code == 0
    assert mobilevit("convert", tmp_path / "out.pt", tmp_path / "back.pt", "--to", "timm").code == 0
    stem = timm_state["stem.conv.weight"]
    _assert_same(
        read_checkpoint(tmp_path / "back.pt"), {**timm_state, "stem.conv.weight": stem[:, [2, 1, 0]]}
    )


@pytest.mark.parametrize(
    ("model", "source_kind", "target", "flip", "noted"),
    [
        ("mobilevit_xxs", "cvnets", "timm", False, True),
        ("mobilevit_xxs", "cvnets", "timm", True, False),
        ("mobilevit_xxs", "cvnets", "hf", False, False),
        ("mobilevit_xxs", "hf", "timm", False, True),
        ("mobilevitv2_050", "cvnets", "timm", False, False),
        ("mobilevitv2_050", "cvnets", "timm", True, True),
        ("mobilevitv2_050", "cvnets", "hf", False, True),
        ("mobilevitv2_050", "hf", "timm", False, False),
    ],
)
def test_channel_order_is_noted_where_it_changes(
    mobilevit: Command, model: str, source_kind: str, target: str, flip: bool, noted: bool, tmp_path: Path
) -> None:
    save_checkpoint(create_model(model, num_classes=2).state_dict(), tmp_path / "a.pt")
    assert mobilevit("convert", tmp_path / "a.pt", tmp_path / "b.pt", "--to", source_kind).code == 0
    option = ["--flip-channels"] if flip else []
    outcome = mobilevit("convert", tmp_path / "b.pt", tmp_path / "c.pt", "--to", target, *option)
    assert outcome.code == 0, outcome.err
    assert ("note: " in outcome.out) is noted


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("{tmp}/missing.pt", "{tmp}/out.pt"), "missing.pt"),
        (("{tmp}/text.pt", "{tmp}/out.pt"), "text.pt"),
        (("{tmp}/in.safetensors", "{tmp}/out.onnx"), "out.onnx"),
        (("{tmp}/in.safetensors", "{tmp}/nowhere/out.pt"), "the folder {tmp}/nowhere does not exist"),
        (("{tmp}/v3.pt", "{tmp}/out.pt"), "transformers has no MobileViTv3"),
    ],
)
def test_what_cannot_be_converted(
    mobilevit: Command, arguments: tuple[str, ...], reason: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.pt").write_text("no checkpoint")
    save_checkpoint(create_model("mobilevitv3_050", num_classes=2).state_dict(), tmp_path / "v3.pt")
    before = sorted(path.name for path in tmp_path.iterdir())
    paths = [argument.format(tmp=tmp_path) for argument in arguments]
    code, _, err = mobilevit("convert", *paths, "--to", "hf")
    assert code == 1
    assert reason.format(tmp=tmp_path) in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before

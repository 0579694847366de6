"""``mobilevit classify`` end to end, on generated weights saved in every form."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mobilevit_kernels.cli.preprocess import default_preprocess
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.checkpoints import convert_state_dict, load_checkpoint, save_checkpoint

Command = Callable[..., Any]

ROW = re.compile(r"^ +(\d+\.\d\d)% +(\d+)  (.+)$", re.MULTILINE)


def _rows(out: str) -> list[tuple[float, int, str]]:
    return [(float(percent), int(index), name) for percent, index, name in ROW.findall(out)]


def _save(state: dict[str, Tensor], kind: str, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(convert_state_dict(state, kind), path)
    return path


@pytest.fixture(scope="module")
def v3_state() -> dict[str, Tensor]:
    return create_model("mobilevitv3_xxs_fast", num_classes=7).state_dict()


@pytest.mark.parametrize(("kind", "suffix"), [("timm", ".safetensors"), ("cvnets", ".pt"), ("hf", ".bin")])
def test_equals_the_model_on_the_prepared_image(
    mobilevit: Command,
    kind: str,
    suffix: str,
    timm_state: dict[str, Tensor],
    photo: Image.Image,
    photo_file: Path,
    tmp_path: Path,
) -> None:
    weights = _save(timm_state, kind, tmp_path / f"weights{suffix}")
    code, out, err = mobilevit("classify", photo_file, "--weights", weights, "--topk", 3, "--size", 64)
    model = create_model("mobilevit_xxs", num_classes=12).eval()
    model.load_state_dict(timm_state)
    with torch.inference_mode():
        expected = model(default_preprocess(kind, "mobilevit_xxs", 64)(photo)[None])[0].softmax(-1).topk(3)
    rows = _rows(out)
    assert (code, err) == (0, "")
    assert f"mobilevit_xxs, {kind} weights" in out
    assert [index for _, index, _ in rows] == expected.indices.tolist()
    assert [percent for percent, _, _ in rows] == pytest.approx(
        [100 * p for p in expected.values.tolist()], abs=0.006
    )
    assert rows[0][2] == f"class {rows[0][1]}"


def test_forms_agree_where_preprocessing_is_equal(
    mobilevit: Command, timm_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    cvnets = _save(timm_state, "cvnets", tmp_path / "cvnets" / "weights.pt")
    hf = _save(timm_state, "hf", tmp_path / "hf" / "model.safetensors")
    timm = _save(timm_state, "timm", tmp_path / "timm" / "model.safetensors")
    # timm's settings file asks for what cvnets does by default: short side 96, bilinear, crop 64.
    settings = {"input_size": [3, 64, 64], "crop_pct": 64 / 96, "interpolation": "bilinear"}
    (tmp_path / "timm" / "config.json").write_text(json.dumps({"pretrained_cfg": settings}))
    outcomes = [
        mobilevit("classify", photo_file, "--weights", cvnets, "--size", 64),
        mobilevit("classify", photo_file, "--weights", hf, "--size", 64),
        mobilevit("classify", photo_file, "--weights", hf.parent, "--size", 64),
        mobilevit("classify", photo_file, "--weights", timm, "--channel-order", "bgr"),
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0, 0], outcomes
    rows = [_rows(outcome.out) for outcome in outcomes]
    assert len(rows[0]) == 5
    assert rows[1:] == rows[:1] * 3


def test_official_v3_weights_and_their_form_here_agree(
    mobilevit: Command, v3_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    official = _save(v3_state, "cvnets", tmp_path / "checkpoint_ema_best.pt")
    ours = _save(v3_state, "timm", tmp_path / "ours.pt")
    first, second = (
        mobilevit("classify", photo_file, "--weights", path, "--size", 64) for path in (official, ours)
    )
    assert "mobilevitv3_xxs_fast, cvnets weights" in first.out
    assert "BGR" in first.out
    assert _rows(first.out) == _rows(second.out) != []


def test_channel_order_matters_and_can_be_overridden(
    mobilevit: Command, timm_state: dict[str, Tensor], photo: Image.Image, tmp_path: Path
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "weights.pt")
    photo.save(tmp_path / "rgb.png")
    Image.merge("RGB", photo.split()[::-1]).save(tmp_path / "bgr.png")
    common = ("--weights", weights, "--size", 64)
    rgb = mobilevit("classify", tmp_path / "rgb.png", *common)
    swapped = mobilevit("classify", tmp_path / "bgr.png", *common)
    undone = mobilevit("classify", tmp_path / "bgr.png", *common, "--channel-order", "bgr")
    assert _rows(swapped.out) != _rows(rgb.out) == _rows(undone.out)


def test_bad_images_are_reported_and_the_others_classified(
    mobilevit: Command, timm_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "weights.pt")
    text, strip = tmp_path / "notes.jpg", tmp_path / "strip.png"
    text.write_text("no image")
    Image.new("L", (1, 30000)).save(strip)
    images = (tmp_path / "missing.png", text, strip, photo_file)
    code, out, err = mobilevit("classify", *images, "--weights", weights, "--size", 64)
    assert code == 1
    assert len(_rows(out)) == 5
    lines = err.splitlines()
    assert len(lines) == 3
    for line, path in zip(lines, images, strict=False):
        assert line.startswith("mobilevit: error: ")
        assert str(path) in line


def test_fewer_classes_than_asked_for(
    mobilevit: Command, timm_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "weights.pt")
    outcome = mobilevit("classify", photo_file, "--weights", weights, "--size", 64, "--topk", 100)
    assert sorted(index for _, index, _ in _rows(outcome.out)) == list(range(12))
    assert sum(percent for percent, _, _ in _rows(outcome.out)) == pytest.approx(100, abs=0.1)


NAMES = [f"animal {i}" for i in range(12)]


@pytest.mark.parametrize(
    ("file_name", "content"),
    [
        ("names.txt", "\n".join(NAMES) + "\n"),
        ("names.json", json.dumps(NAMES)),
        ("names.json", json.dumps({str(i): name for i, name in enumerate(NAMES)})),
        ("config.json", json.dumps({"id2label": {str(i): name for i, name in enumerate(NAMES)}})),
        ("config.json", json.dumps({"label_names": NAMES})),
    ],
)
def test_class_names(
    mobilevit: Command,
    file_name: str,
    content: str,
    timm_state: dict[str, Tensor],
    photo_file: Path,
    tmp_path: Path,
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "model.safetensors")
    (tmp_path / file_name).write_text(content)
    option = [] if file_name == "config.json" else ["--labels", tmp_path / file_name]
    outcome = mobilevit("classify", photo_file, "--weights", weights, "--size", 64, *option)
    assert outcome.err == ""
    assert [name for _, _, name in _rows(outcome.out)] == [
        f"animal {index}" for _, index, _ in _rows(outcome.out)
    ]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("cat\ndog\n", "expected 12 class names as the model has, got 2"),
        ('{"cat": 0}', "expected one class name a line, or a JSON list"),
        ("3", "expected one class name a line, or a JSON list"),
        (None, "no such file"),
    ],
)
def test_unusable_class_names(
    mobilevit: Command,
    content: str | None,
    reason: str,
    timm_state: dict[str, Tensor],
    photo_file: Path,
    tmp_path: Path,
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "weights.pt")
    labels = tmp_path / ("names.txt" if content is None or content.startswith("cat") else "names.json")
    if content is not None:
        labels.write_text(content)
    code, _, err = mobilevit("classify", photo_file, "--weights", weights, "--size", 64, "--labels", labels)
    assert code == 1
    assert reason in err
    assert err.count("\n") == 1


def test_imagenet_names_come_from_an_installed_timm() -> None:
    timm_data = pytest.importorskip("timm.data")
    from mobilevit_kernels.cli.labels import imagenet_names

    info = timm_data.ImageNetInfo()
    expected = {index: info.index_to_description(index) for index in range(1000)}
    assert imagenet_names() == expected


@pytest.mark.parametrize(
    "kind", ["missing", "empty", "text", "truncated", "foreign", "no classifier", "grey"]
)
def test_unusable_weights_are_one_clear_line(
    mobilevit: Command, kind: str, timm_state: dict[str, Tensor], photo_file: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.pt"
    if kind == "empty":
        weights.write_bytes(b"")
    elif kind == "text":
        weights.write_text("no checkpoint")
    elif kind == "truncated":
        save_checkpoint(timm_state, weights)
        weights.write_bytes(weights.read_bytes()[:100_000])
    elif kind == "foreign":
        torch.save(torch.nn.Linear(2, 2).state_dict(), weights)
    elif kind == "no classifier":
        save_checkpoint({key: value for key, value in timm_state.items() if "head" not in key}, weights)
    elif kind == "grey":
        grey = {
            key: value[:, :1] if key == "stem.conv.weight" else value for key, value in timm_state.items()
        }
        save_checkpoint(grey, weights)
    code, out, err = mobilevit("classify", photo_file, "--weights", weights)
    assert (code, out) == (1, "")
    assert err.startswith("mobilevit: error: ")
    assert str(weights) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mobilevit_s", "expected weights of mobilevit_s, got weights of mobilevit_xxs"),
        ("resnet50", "unknown model 'resnet50'; expected one of mobilevit_s"),
    ],
)
def test_another_model_than_the_weights(
    mobilevit: Command,
    name: str,
    reason: str,
    timm_state: dict[str, Tensor],
    photo_file: Path,
    tmp_path: Path,
) -> None:
    weights = _save(timm_state, "timm", tmp_path / "weights.pt")
    code, out, err = mobilevit("classify", photo_file, "--weights", weights, "--model", name)
    assert (code, out) == (1, "")
    assert reason in err
    assert err.count("\n") == 1


def test_converted_stem_gives_the_same_classes_under_the_other_order(
    mobilevit: Command, timm_state: dict[str, Tensor], photo: Image.Image, tmp_path: Path
) -> None:
    source, flipped = _save(timm_state, "cvnets", tmp_path / "bgr.pt"), tmp_path / "rgb.safetensors"
    assert mobilevit("convert", source, flipped, "--to", "timm", "--flip-channels").code == 0
    images = [default_preprocess("cvnets", "mobilevit_xxs", 64)(photo)]
    images.append(images[0].flip(0))
    logits = []
    for path, image in zip((source, flipped), images, strict=True):
        model = create_model("mobilevit_xxs", num_classes=12).eval()
        load_checkpoint(model, path)
        with torch.inference_mode():
            logits.append(model(image[None]))
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)

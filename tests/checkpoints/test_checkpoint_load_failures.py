"""Checkpoints that do not fit: what the error or the report says, and that the model stays as it was."""

import pytest
import torch
from torch import nn

from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.checkpoints import (
    CheckpointMismatch,
    convert_state_dict,
    load_checkpoint,
    save_checkpoint,
)


def test_other_number_of_classes(timm_model, snapshot, assert_unchanged):
    state = timm_model("mobilevitv2_050").state_dict()
    model = create_model("mobilevitv2_050", num_classes=10)
    before = snapshot(model)
    with pytest.raises(
        RuntimeError,
        match="has 1000 classes, the model 10: create the model with num_classes=1000, or pass strict=False",
    ):
        load_checkpoint(model, state)
    assert_unchanged(model, before)

    report = load_checkpoint(model, state, strict=False)
    assert report.mismatched == (
        ("head.fc.weight", (10, 256), (1000, 256)),
        ("head.fc.bias", (10,), (1000,)),
    )
    assert "head.fc.weight: model [10, 256], checkpoint [1000, 256]" in str(report)
    after = model.state_dict()
    for key, value in after.items():
        assert torch.equal(value, before[key] if key.startswith("head.fc.") else state[key]), key


def test_other_number_of_channels(timm_model):
    model = create_model("mobilevit_xxs", in_chans=1)
    with pytest.raises(RuntimeError, match="takes 3 input channels, the model 1"):
        load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())


def test_failure_lists_exactly_what_does_not_fit(timm_model, snapshot, assert_unchanged):
    state = dict(timm_model("mobilevit_xxs").state_dict())
    del state["stages.3.1.norm.bias"]
    state["stages.0.0.extra.weight"] = torch.zeros(1)
    state["final_conv.bn.weight"] = torch.zeros(3)
    model = create_model("mobilevit_xxs")
    before = snapshot(model)
    with pytest.raises(CheckpointMismatch) as failure:
        load_checkpoint(model, state)
    report = failure.value.report
    assert report.missing == ("stages.3.1.norm.bias",)
    assert report.unexpected == ("stages.0.0.extra.weight",)
    assert report.mismatched == (("final_conv.bn.weight", (320,), (3,)),)
    for line in (
        "does not fit mobilevit_xxs; the model was not changed",
        "missing from the checkpoint (1):\n    stages.3.1.norm.bias",
        "not in the model (1):\n    stages.0.0.extra.weight",
        "of another shape (1):\n    final_conv.bn.weight: model [320], checkpoint [3]",
    ):
        assert line in str(failure.value)
    assert_unchanged(model, before)

    partial = load_checkpoint(model, state, strict=False)
    assert (partial.missing, partial.unexpected, partial.mismatched) == (
        report.missing,
        report.unexpected,
        report.mismatched,
    )
    kept = {"stages.3.1.norm.bias", "final_conv.bn.weight"}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in kept else state[key]), key


@pytest.mark.parametrize(
    ("checkpoint", "model_name"),
    [
        ("mobilevitv2_050", "mobilevit_s"),
        ("mobilevit_s", "mobilevit_xs"),
        ("mobilevitv3_s_fast", "mobilevitv3_s"),
        ("mobilevitv3_xxs", "mobilevit_xxs"),
        ("mobilevitv3_050", "mobilevitv2_050"),
    ],
)
def test_checkpoint_of_another_model_is_named(checkpoint, model_name, our_model, snapshot, assert_unchanged):
    model = create_model(model_name)
    before = snapshot(model)
    state = convert_state_dict(our_model(checkpoint).state_dict(), "cvnets")
    with pytest.raises(RuntimeError) as failure:
        load_checkpoint(model, state)
    message = str(failure.value)
    assert f"the checkpoint is for {checkpoint}: load it into create_model('{checkpoint}')" in message
    assert f"does not fit {model_name}" in message
    assert len(message.splitlines()) < 30
    assert_unchanged(model, before)


def test_unconverted_names_are_unexpected(hf_model):
    state = dict(hf_model("mobilevit_xxs").state_dict())
    key = "encoder.layer.4.transformer.layer.2.attention.attention"
    del state[f"mobilevit.{key}.value.bias"]
    with pytest.raises(CheckpointMismatch) as failure:
        load_checkpoint(create_model("mobilevit_xxs"), state)
    assert failure.value.report.missing == ("stages.4.1.transformer.2.attn.qkv.bias",)
    assert failure.value.report.unexpected == (f"{key}.query.bias", f"{key}.key.bias")


def test_nothing_fits(timm_model, snapshot, assert_unchanged):
    state = {"head.fc.weight": torch.zeros(7, 320), "head.fc.bias": torch.zeros(7)}
    model = create_model("mobilevit_xxs")
    before = snapshot(model)
    with pytest.raises(CheckpointMismatch, match="does not fit mobilevit_xxs"):
        load_checkpoint(model, state, strict=False)
    assert_unchanged(model, before)


def test_a_model_that_is_no_mobilevit(timm_model):
    model = nn.Linear(2, 2)
    with pytest.raises(CheckpointMismatch, match="does not fit Linear; the model was not changed"):
        load_checkpoint(model, timm_model("mobilevit_xxs").state_dict(), strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "head.fc.bias",
            torch.zeros(1000, dtype=torch.complex64),
            "floating-point dtype, got torch.complex64",
        ),
        ("head.fc.bias", torch.zeros(1000, dtype=torch.int8), "floating-point dtype, got torch.int8"),
        (
            "head.fc.bias",
            torch.zeros(1000, device="meta"),
            "dense tensor with data, it is on the meta device",
        ),
        ("head.fc.bias", torch.zeros(1000).to_sparse(), "dense tensor with data, it is torch.sparse_coo"),
        ("head.fc.bias", None, "expected only tensors in the state dict, 'head.fc.bias' is a NoneType"),
    ],
)
def test_tensors_that_cannot_be_copied(strict, key, value, message, timm_model, snapshot, assert_unchanged):
    state = {**timm_model("mobilevit_xxs").state_dict(), key: value}
    model = create_model("mobilevit_xxs")
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(model, state, strict=strict)
    assert_unchanged(model, before)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors(timm_model):
    quantized = torch.quantize_per_tensor(torch.zeros(1000), 1.0, 0, torch.qint8)
    state = {**timm_model("mobilevit_xxs").state_dict(), "head.fc.bias": quantized}
    with pytest.raises(ValueError, match="dense tensor with data, it is torch.strided, torch.qint8"):
        load_checkpoint(create_model("mobilevit_xxs"), state)


def test_model_on_the_meta_device(timm_model):
    with torch.device("meta"):
        model = create_model("mobilevit_xxs")
    with pytest.raises(ValueError, match=r"on the meta device and has no data; call model\.to_empty"):
        load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"<html>"])
def test_damaged_file_leaves_the_model_alone(content, tmp_path, snapshot, assert_unchanged):
    (tmp_path / "a.pt").write_bytes(content)
    model = create_model("mobilevit_xxs")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"a\.pt: "):
        load_checkpoint(model, tmp_path / "a.pt")
    assert_unchanged(model, before)


def test_foreign_file_is_named(tmp_path):
    save_checkpoint(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(ValueError, match=r"linear\.pt: holds no MobileViT"):
        load_checkpoint(create_model("mobilevit_xxs"), tmp_path / "linear.pt")

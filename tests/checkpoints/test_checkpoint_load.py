"""Loading into this package's models: the outputs of the source, reports, and failures that change nothing."""

import pytest
import torch
from torch import nn

from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.checkpoints import (
    CheckpointMismatch,
    load_checkpoint,
    save_checkpoint,
)

SIZES = [
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_075",
    "mobilevitv2_125",
    "mobilevitv2_200",
]
V3 = ["mobilevitv3_xxs", "mobilevitv3_s", "mobilevitv3_xs_fast", "mobilevitv3_050", "mobilevitv3_100"]


@pytest.mark.parametrize("name", SIZES)
def test_transformers_checkpoint(name, hf_model, images, tmp_path):
    source = hf_model(name)
    save_checkpoint(source.state_dict(), tmp_path / "a.safetensors")
    model = create_model(name).eval()
    report = load_checkpoint(model, tmp_path / "a.safetensors")
    assert (report.format, report.model_name, report.complete) == ("hf", name, True)
    assert set(report.loaded) == set(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("naming", ["timm", "cvnets"])
def test_timm_and_cvnets_checkpoints(name, naming, timm_model, cvnets_state, images, assert_unchanged):
    source = timm_model(name)
    state = source.state_dict() if naming == "timm" else cvnets_state(name, source.state_dict())
    model = create_model(name).eval()
    report = load_checkpoint(model, state)
    assert (report.format, report.model_name, report.complete) == (naming, name, True)
    assert_unchanged(model, source.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images), source(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", V3)
def test_official_v3_checkpoint(name, our_model, cvnets_state, images):
    source = our_model(name)
    model = create_model(name).eval()
    report = load_checkpoint(model, cvnets_state(name, source.state_dict()))
    family = "v3-v2" if name in ("mobilevitv3_050", "mobilevitv3_100") else "v3-v1"
    assert (report.format, report.family, report.model_name) == ("cvnets", family, name)
    with torch.no_grad():
        assert torch.equal(model(images), source(images))


def test_training_form_prefers_the_average(timm_model, our_model, assert_unchanged):
    average, last = timm_model("mobilevit_xxs").state_dict(), our_model("mobilevit_xxs").state_dict()
    model = create_model("mobilevit_xxs")
    report = load_checkpoint(model, {"state_dict": last, "state_dict_ema": average, "epoch": 3})
    assert report.container == "state_dict_ema"
    assert "state_dict_ema" in str(report)
    assert_unchanged(model, average)


def test_wrapped_models(timm_model, assert_unchanged):
    model = nn.DataParallel(create_model("mobilevit_xxs"))
    load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())
    assert_unchanged(model.module, timm_model("mobilevit_xxs").state_dict())
    compiled = torch.compile(create_model("mobilevit_xxs"))
    load_checkpoint(compiled, timm_model("mobilevit_xxs").state_dict())
    assert_unchanged(compiled._orig_mod, timm_model("mobilevit_xxs").state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_model_keeps_its_dtype_and_memory_format(dtype, timm_model):
    model = create_model("mobilevit_xxs").to(dtype).to(memory_format=torch.channels_last)
    before = {key: (tensor.dtype, tensor.stride()) for key, tensor in model.state_dict().items()}
    load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())
    assert {key: (tensor.dtype, tensor.stride()) for key, tensor in model.state_dict().items()} == before
    weight = timm_model("mobilevit_xxs").stem.conv.weight
    assert torch.equal(model.stem.conv.weight, weight.to(dtype))


def test_half_precision_checkpoint(timm_model):
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in timm_model("mobilevit_xxs").state_dict().items()
    }
    model = create_model("mobilevit_xxs")
    load_checkpoint(model, state)
    assert model.stem.conv.weight.dtype == torch.float32
    assert torch.equal(model.stem.conv.weight, state["stem.conv.weight"].float())


def test_parameters_stay_the_same_objects(timm_model):
    model = create_model("mobilevit_xxs")
    before = dict(model.named_parameters())
    load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())
    assert all(
        parameter is before[name] and parameter.requires_grad for name, parameter in model.named_parameters()
    )


def test_counters_of_batch_norm_may_be_missing(timm_model):
    state = {
        key: value
        for key, value in timm_model("mobilevit_xxs").state_dict().items()
        if "num_batches" not in key
    }
    report = load_checkpoint(create_model("mobilevit_xxs"), state)
    assert report.complete


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"features_only": True}])
def test_model_without_classifier_leaves_it_out(options, timm_model):
    source = timm_model("mobilevit_xxs")
    model = create_model("mobilevit_xxs", **options)
    report = load_checkpoint(model, source.state_dict())
    assert report.complete
    assert report.dropped == ("head.fc.weight", "head.fc.bias")
    state = {key.replace("stages_", "stages."): value for key, value in model.state_dict().items()}
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in state.items())


def test_feature_extractor_cut_off_early(timm_model):
    model = create_model("mobilevit_xxs", features_only=True, out_indices=(0, 2))
    report = load_checkpoint(model, timm_model("mobilevit_xxs").state_dict())
    assert report.complete
    assert {name.split(".")[0] for name in report.dropped} == {"stages", "final_conv", "head"}
    assert not any(
        name.startswith(("stem.", "stages.0.", "stages.1.", "stages.2.")) for name in report.dropped
    )


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_segmentation_checkpoint_gives_its_backbone(name, hf_model):
    source = hf_model(name, "ForSemanticSegmentation")
    model = create_model(name, features_only=True, out_indices=(0, 1, 2, 3))
    report = load_checkpoint(model, source.state_dict())
    assert report.complete
    assert all(key in report.dropped for key in source.state_dict() if key.startswith("segmentation_head."))
    with pytest.raises(
        CheckpointMismatch, match=r"has no classifier: create the model with num_classes=0"
    ) as failure:
        load_checkpoint(create_model(name), source.state_dict())
    assert "head.fc.weight" in failure.value.report.missing


@pytest.mark.parametrize("attention", ["linformer", "separable"])
def test_ablation_models_take_their_own_weights(attention, our_model, assert_unchanged):
    source = our_model("mobilevit_xxs", attention=attention)
    model = create_model("mobilevit_xxs", attention=attention)
    report = load_checkpoint(model, source.state_dict())
    assert report.complete
    assert_unchanged(model, source.state_dict())

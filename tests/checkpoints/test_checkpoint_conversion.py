"""Conversion between namings, against real timm and transformers models and cvnets' names written out."""

import pytest
import torch

from mobilevit_kernels.models.checkpoints import convert_state_dict, detect_family, detect_format

SIZES = [
    "mobilevit_xxs",
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_050",
    "mobilevitv2_100",
    "mobilevitv2_200",
]
SMALL = ["mobilevit_xxs", "mobilevitv2_050"]

# Written by hand from the published files, timm's name on the right.
CVNETS_TO_TIMM = {
    "mobilevit_xxs": {
        "conv_1.block.conv.weight": "stem.conv.weight",
        "conv_1.block.norm.running_var": "stem.bn.running_var",
        "layer_1.0.block.exp_1x1.block.conv.weight": "stages.0.0.conv1_1x1.conv.weight",
        "layer_2.2.block.conv_3x3.block.norm.bias": "stages.1.2.conv2_kxk.bn.bias",
        "layer_3.0.block.red_1x1.block.conv.weight": "stages.2.0.conv3_1x1.conv.weight",
        "layer_3.1.local_rep.conv_3x3.block.conv.weight": "stages.2.1.conv_kxk.conv.weight",
        "layer_3.1.local_rep.conv_1x1.block.conv.weight": "stages.2.1.conv_1x1.weight",
        "layer_4.1.global_rep.3.pre_norm_mha.0.weight": "stages.3.1.transformer.3.norm1.weight",
        "layer_4.1.global_rep.3.pre_norm_mha.1.qkv_proj.bias": "stages.3.1.transformer.3.attn.qkv.bias",
        "layer_4.1.global_rep.3.pre_norm_mha.1.out_proj.weight": "stages.3.1.transformer.3.attn.proj.weight",
        "layer_5.1.global_rep.0.pre_norm_ffn.0.bias": "stages.4.1.transformer.0.norm2.bias",
        "layer_5.1.global_rep.0.pre_norm_ffn.1.weight": "stages.4.1.transformer.0.mlp.fc1.weight",
        "layer_5.1.global_rep.0.pre_norm_ffn.4.weight": "stages.4.1.transformer.0.mlp.fc2.weight",
        "layer_3.1.global_rep.2.weight": "stages.2.1.norm.weight",
        "layer_4.1.global_rep.4.weight": "stages.3.1.norm.weight",
        "layer_5.1.global_rep.3.bias": "stages.4.1.norm.bias",
        "layer_5.1.conv_proj.block.conv.weight": "stages.4.1.conv_proj.conv.weight",
        "layer_5.1.fusion.block.norm.weight": "stages.4.1.conv_fusion.bn.weight",
        "conv_1x1_exp.block.conv.weight": "final_conv.conv.weight",
        "classifier.fc.weight": "head.fc.weight",
    },
    "mobilevitv2_050": {
        "layer_3.1.local_rep.0.block.conv.weight": "stages.2.1.conv_kxk.conv.weight",
        "layer_3.1.local_rep.1.block.conv.weight": "stages.2.1.conv_1x1.weight",
        "layer_4.1.global_rep.3.pre_norm_attn.0.bias": "stages.3.1.transformer.3.norm1.bias",
        "layer_4.1.global_rep.3.pre_norm_attn.1.qkv_proj.block.conv.weight": (
            "stages.3.1.transformer.3.attn.qkv_proj.weight"
        ),
        "layer_4.1.global_rep.3.pre_norm_attn.1.out_proj.block.conv.bias": (
            "stages.3.1.transformer.3.attn.out_proj.bias"
        ),
        "layer_5.1.global_rep.1.pre_norm_ffn.0.weight": "stages.4.1.transformer.1.norm2.weight",
        "layer_5.1.global_rep.1.pre_norm_ffn.1.block.conv.weight": "stages.4.1.transformer.1.mlp.fc1.weight",
        "layer_5.1.global_rep.1.pre_norm_ffn.3.block.conv.weight": "stages.4.1.transformer.1.mlp.fc2.weight",
        "layer_4.1.global_rep.4.bias": "stages.3.1.norm.bias",
        "layer_3.1.conv_proj.block.norm.running_mean": "stages.2.1.conv_proj.bn.running_mean",
        "classifier.1.bias": "head.fc.bias",
    },
}


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("name", SIZES)
def test_transformers_checkpoint_runs_in_timm(name, hf_model):
    import timm

    source = hf_model(name)
    target = timm.create_model(name).eval()
    target.load_state_dict(convert_state_dict(source.state_dict(), "timm"), strict=True)
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(target(images), source(images).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SIZES)
def test_timm_checkpoint_runs_in_transformers(name, timm_model, hf_model):
    source, target = timm_model(name), hf_model(name)
    target.load_state_dict(convert_state_dict(source.state_dict(), "hf"), strict=True)
    images = torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(target(images).logits, source(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_counters_of_batch_norm_are_converted(name, timm_model):
    converted = convert_state_dict(timm_model(name).state_dict(), "hf")
    prefix = "mobilevit" if name == "mobilevit_xxs" else "mobilevitv2"
    key = f"{prefix}.encoder.layer.1.layer.0.conv_3x3.normalization.num_batches_tracked"
    assert torch.equal(
        converted[key], timm_model(name).state_dict()["stages.1.0.conv2_kxk.bn.num_batches_tracked"]
    )


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("through", ["cvnets", "hf"])
def test_round_trips_give_the_same_tensors(name, through, timm_model):
    state = timm_model(name).state_dict()
    there = convert_state_dict(state, through)
    assert detect_format(there) == through
    assert_same(convert_state_dict(there, "timm"), state)


@pytest.mark.parametrize("name", SMALL)
def test_cvnets_and_transformers_convert_to_each_other(name, hf_model):
    state = hf_model(name).state_dict()
    cvnets = convert_state_dict(state, "cvnets")
    assert detect_format(cvnets) == "cvnets"
    assert_same(convert_state_dict(cvnets, "hf"), state)


@pytest.mark.parametrize("name", SIZES)
def test_cvnets_names_are_complete_and_in_order(name, timm_model, cvnets_state):
    """timm and cvnets keep the same tensors in the same order, so pairing by position is a second converter."""
    state = timm_model(name).state_dict()
    expected = cvnets_state(name, state)
    converted = convert_state_dict(state, "cvnets")
    assert list(converted) == list(expected)
    assert_same(converted, expected)


@pytest.mark.parametrize("name", ["mobilevitv3_xxs", "mobilevitv3_s_fast", "mobilevitv3_050"])
def test_official_v3_names_are_complete_and_in_order(name, our_model, cvnets_state):
    state = our_model(name).state_dict()
    expected = cvnets_state(name, state)
    assert list(convert_state_dict(state, "cvnets")) == list(expected)
    assert_same(convert_state_dict(expected, "timm"), state)


@pytest.mark.parametrize(("name", "pairs"), CVNETS_TO_TIMM.items())
def test_published_cvnets_names(name, pairs, timm_model):
    state = timm_model(name).state_dict()
    converted = convert_state_dict(state, "cvnets")
    back = convert_state_dict(converted, "timm")
    for cvnets, timm in pairs.items():
        assert torch.equal(converted[cvnets], state[timm]), cvnets
        assert torch.equal(back[timm], state[timm]), timm


@pytest.mark.parametrize("name", SMALL)
def test_transformers_backbone_without_prefix(name, hf_model):
    model = hf_model(name)
    backbone = getattr(model, model.base_model_prefix).state_dict()
    converted = convert_state_dict(backbone, "timm")
    expected = convert_state_dict(model.state_dict(), "timm")
    del expected["head.fc.weight"], expected["head.fc.bias"]
    assert_same(converted, expected)


@pytest.mark.parametrize("name", SMALL)
def test_transformers_segmentation_keeps_the_backbone(name, hf_model):
    model = hf_model(name, "ForSemanticSegmentation")
    heads = [key for key in model.state_dict() if key.startswith("segmentation_head.")]
    assert heads
    with pytest.warns(UserWarning, match=f"left out {len(heads)} tensors of a segmentation"):
        converted = convert_state_dict(model.state_dict(), "timm")
    backbone = getattr(model, model.base_model_prefix).state_dict()
    assert_same(converted, convert_state_dict(backbone, "timm"))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "head", ["seg_head.aspp.convs.0.block.conv.weight", "ssd_heads.0.loc_cls_layer.weight"]
)
def test_cvnets_encoder_of_other_tasks(name, head, timm_model, cvnets_state):
    state = timm_model(name).state_dict()
    encoder = {f"encoder.{key}": value for key, value in cvnets_state(name, state).items()}
    with pytest.warns(UserWarning, match="left out 1 tensors"):
        converted = convert_state_dict({**encoder, head: torch.zeros(1)}, "timm")
    assert_same(converted, state)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_do_not_matter(prefix, timm_model):
    state = timm_model("mobilevit_xxs").state_dict()
    wrapped = {prefix + key: value for key, value in convert_state_dict(state, "hf").items()}
    assert detect_format(wrapped) == "hf"
    assert_same(convert_state_dict(wrapped, "timm"), state)


def test_timm_feature_extractor_has_the_names_of_the_model():
    import timm

    state = timm.create_model("mobilevit_xxs", features_only=True).state_dict()
    assert "stages_2.1.conv_1x1.weight" in state
    assert "stages.2.1.conv_1x1.weight" in convert_state_dict(state, "timm")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("mobilevit_s", "v1"),
        ("mobilevitv2_075", "v2"),
        ("mobilevitv3_xs", "v3-v1"),
        ("mobilevitv3_075", "v3-v2"),
    ],
)
@pytest.mark.parametrize("naming", ["timm", "cvnets"])
def test_detect_family(name, family, naming, our_model):
    assert detect_family(convert_state_dict(our_model(name).state_dict(), naming)) == family


@pytest.mark.parametrize("name", ["mobilevitv3_xxs", "mobilevitv3_050"])
def test_transformers_has_no_v3(name, our_model):
    with pytest.raises(ValueError, match="transformers has no MobileViTv3"):
        convert_state_dict(our_model(name).state_dict(), "hf")


def test_unknown_target(timm_model):
    with pytest.raises(ValueError, match="to: expected one of timm, cvnets, hf, got 'keras'"):
        convert_state_dict(timm_model("mobilevit_xxs").state_dict(), "keras")


def test_unknown_tensors_are_named(timm_model):
    state = {**timm_model("mobilevit_xxs").state_dict(), "stages.2.1.extra.weight": torch.zeros(1)}
    with pytest.raises(
        ValueError, match=r"no cvnets name is known for 1 tensors: stages\.2\.1\.extra\.weight"
    ):
        convert_state_dict(state, "cvnets")


def test_query_without_key_is_named(hf_model):
    state = dict(hf_model("mobilevit_xxs").state_dict())
    attention = "mobilevit.encoder.layer.2.transformer.layer.0.attention.attention"
    del state[f"{attention}.key.weight"]
    with pytest.raises(ValueError, match="no timm name is known for 2 tensors: .*query.weight.*value.weight"):
        convert_state_dict(state, "timm")


def test_qkv_that_does_not_split_is_named(timm_model):
    state = dict(timm_model("mobilevit_xxs").state_dict())
    state["stages.2.1.transformer.0.attn.qkv.bias"] = torch.zeros(190)
    with pytest.raises(ValueError, match=r"qkv\.bias: expected rows query \| key \| value, got \[190\]"):
        convert_state_dict(state, "hf")


def test_norm_of_a_stage_without_layers_has_no_cvnets_name():
    state = {"stem.conv.weight": torch.zeros(16, 3, 3, 3), "stages.2.1.norm.weight": torch.zeros(64)}
    with pytest.raises(
        ValueError, match=r"no cvnets name is known for 1 tensors: stages\.2\.1\.norm\.weight"
    ):
        convert_state_dict(state, "cvnets")


@pytest.mark.parametrize(
    "state",
    [{"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}, {"segmentation_head.x": torch.zeros(1)}],
)
def test_foreign_state_dicts_are_refused(state):
    with pytest.raises(ValueError, match="expected a MobileViT in the names of timm, cvnets or transformers"):
        detect_format(state)


def test_empty_state_dict_is_refused():
    with pytest.raises(ValueError, match="the state dict is empty"):
        convert_state_dict({}, "timm")


def test_other_networks_with_a_few_equal_names_are_refused():
    import timm

    state = timm.create_model("convnext_atto").state_dict()
    assert "head.fc.weight" in state
    with pytest.raises(ValueError, match="expected a MobileViT"):
        detect_format(state)

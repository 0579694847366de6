"""Which model a checkpoint is for."""

import pytest
import torch

from mobilevit_kernels.models import create_model, list_models
from mobilevit_kernels.models.checkpoints import convert_state_dict, infer_model_name

NAMES = list_models()


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_recognised_in_every_naming(name):
    state = create_model(name).state_dict()
    assert infer_model_name(state) == name
    assert infer_model_name(convert_state_dict(state, "cvnets")) == name
    if not name.startswith("mobilevitv3"):
        assert infer_model_name(convert_state_dict(state, "hf")) == name


@pytest.mark.parametrize("name", ["mobilevit_xs", "mobilevitv2_125", "mobilevitv3_s_fast"])
@pytest.mark.parametrize(("num_classes", "in_chans"), [(10450, 3), (7, 1), (0, 4)])
def test_classes_and_channels_do_not_matter(name, num_classes, in_chans):
    model = create_model(name, num_classes=num_classes, in_chans=in_chans)
    assert infer_model_name(model.state_dict()) == name


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_transformers_models_are_recognised(name, hf_model):
    assert infer_model_name(hf_model(name).state_dict()) == name
    assert infer_model_name(hf_model(name, "ForSemanticSegmentation").state_dict()) == name


def test_missing_tensors_are_not_held_against_a_model(timm_model):
    state = dict(timm_model("mobilevit_s").state_dict())
    for key in list(state):
        if key.startswith(("stages.4.", "final_conv.", "head.")):
            del state[key]
    assert infer_model_name(state) == "mobilevit_s"


def test_too_few_tensors_name_the_candidates():
    with pytest.raises(ValueError, match="tell these models apart: mobilevit_xxs, mobilevit_xs, mobilevit_s"):
        infer_model_name({"stem.conv.weight": torch.zeros(16, 3, 3, 3)})


def test_widths_of_no_variant_are_listed(timm_model):
    state = dict(timm_model("mobilevit_s").state_dict())
    state["stem.conv.weight"] = torch.zeros(18, 3, 3, 3)
    with pytest.raises(ValueError, match="no MobileViT variant .* stem 18"):
        infer_model_name(state)


def test_tensors_of_wrong_rank_do_not_crash(timm_model):
    state = {key: torch.zeros(()) for key in timm_model("mobilevit_s").state_dict()}
    with pytest.raises(ValueError, match="tell these models apart"):
        infer_model_name(state)

"""create_model and list_models: names, errors, checkpoints with another head or stem."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mobilevit_kernels.models
from mobilevit_kernels.models import create_model, list_models
from mobilevit_kernels.models.layers import make_divisible

Random = Callable[..., nn.Module]


def same_tensors(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[k], expected[k]) for k in expected)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("mobilevit_*", ["mobilevit_s", "mobilevit_xs", "mobilevit_xxs"]),
        ("mobilevitv3_*fast", ["mobilevitv3_s_fast", "mobilevitv3_xs_fast", "mobilevitv3_xxs_fast"]),
        ("*_050", ["mobilevitv2_050", "mobilevitv3_050"]),
        ("resnet*", []),
    ],
)
def test_list_models_filters(pattern: str, names: list[str]) -> None:
    assert list_models(pattern) == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilevit_m", "unknown model 'mobilevit_m'; did you mean .*mobilevit_s"),
        ("mobilevitv2_1.0", "did you mean .*mobilevitv2_100"),
        ("mobilevit_s.cvnets_in1k", "did you mean mobilevit_s"),
        ("resnet50", "known names: mobilevit_s, .*mobilevitv3_xxs_fast"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name)


def test_pretrained_is_refused() -> None:
    assert create_model("mobilevit_xxs", pretrained=False)
    with pytest.raises(ValueError, match="pass checkpoint="):
        create_model("mobilevit_xxs", pretrained=True)


def test_exports() -> None:
    for name in mobilevit_kernels.models.__all__:
        assert callable(getattr(mobilevit_kernels.models, name))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050"])
def test_checkpoint(name: str, random_model: Random, tmp_path: Path) -> None:
    """A state dict and a file of it."""
    source = random_model(name, num_classes=5)
    state = source.state_dict()
    torch.save(state, tmp_path / "weights.pt")
    for checkpoint in (state, tmp_path / "weights.pt", str(tmp_path / "weights.pt")):
        model = create_model(name, num_classes=5, checkpoint=checkpoint).eval()
        assert same_tensors(model.state_dict(), state)
        x = torch.rand(1, 3, 64, 64)
        assert torch.equal(model(x), source(x))


def test_checkpoint_with_other_classes(random_model: Random) -> None:
    """The classifier stays fresh, everything else is loaded, and the caller is told."""
    state = random_model("mobilevit_xxs", num_classes=5).state_dict()
    with pytest.warns(UserWarning, match="5 classes and the model num_classes=8") as record:
        model = create_model("mobilevit_xxs", num_classes=8, checkpoint=state)
    assert record[0].filename == __file__
    assert model.get_classifier().weight.shape == (8, 320)
    assert 0.01 < model.get_classifier().weight.std() < 0.03
    loaded = {k: v for k, v in model.state_dict().items() if not k.startswith("head")}
    assert same_tensors(loaded, {k: v for k, v in state.items() if not k.startswith("head")})


@pytest.mark.filterwarnings("error")
def test_checkpoint_without_classes(random_model: Random) -> None:
    """num_classes=0 drops the classifier of the checkpoint, silently."""
    source = random_model("mobilevitv2_050", num_classes=5)
    model = create_model("mobilevitv2_050", num_classes=0, checkpoint=source.state_dict()).eval()
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x), source.forward_head(source.forward_features(x), pre_logits=True))


def test_headless_checkpoint(random_model: Random) -> None:
    state = random_model("mobilevitv2_050", num_classes=0).state_dict()
    with pytest.warns(UserWarning, match="0 classes"):
        model = create_model("mobilevitv2_050", num_classes=3, checkpoint=state)
    assert same_tensors({k: v for k, v in model.state_dict().items() if k in state}, state)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 2)])
def test_checkpoint_for_features(out_indices: tuple[int, ...], random_model: Random) -> None:
    full, maps = random_model("mobilevit_xxs"), random_model("mobilevit_xxs", features_only=True)
    model = create_model(
        "mobilevit_xxs", features_only=True, out_indices=out_indices, checkpoint=full.state_dict()
    ).eval()
    state = {
        k.replace("stages.", "stages_"): v for k, v in full.state_dict().items() if not k.startswith("head")
    }
    maps.load_state_dict(state, strict=True)
    x = torch.rand(1, 3, 64, 64)
    expected = maps(x)
    for index, actual in zip(out_indices, model(x), strict=True):
        assert torch.equal(actual, expected[index])


@pytest.mark.parametrize("in_chans", [1, 4, 6])
def test_checkpoint_with_other_image_channels(in_chans: int, random_model: Random) -> None:
    """Grey images give what their RGB copies gave; more channels repeat RGB, rescaled, as in timm."""
    from timm.models._manipulate import adapt_input_conv

    source = random_model("mobilevit_xxs")
    model = create_model("mobilevit_xxs", in_chans=in_chans, checkpoint=source.state_dict()).eval()
    expected = adapt_input_conv(in_chans, source.stem.conv.weight)
    torch.testing.assert_close(model.stem.conv.weight, expected)
    if in_chans == 1:
        x = torch.rand(1, 1, 64, 64)
        torch.testing.assert_close(model(x), source(x.expand(1, 3, 64, 64)), rtol=1e-4, atol=1e-4)


def test_checkpoint_of_another_variant(random_model: Random) -> None:
    with pytest.raises(RuntimeError, match="mobilevitv2_050"):
        create_model("mobilevit_xxs", checkpoint=random_model("mobilevitv2_050").state_dict())


def test_foreign_checkpoint() -> None:
    with pytest.raises(ValueError, match="checkpoint: .*MobileViT"):
        create_model("mobilevit_xxs", checkpoint=nn.Linear(2, 2).state_dict())


def test_checkpoint_of_an_ablation(random_model: Random) -> None:
    """Weights of a model with options come back into a model with the same options, and into no other."""
    for options in ({"fusion_kernel": 3}, {"attention": "linformer", "img_size": 64}):
        state = random_model("mobilevitv3_xxs", num_classes=5, **options).state_dict()
        model = create_model("mobilevitv3_xxs", num_classes=5, checkpoint=state, **options)
        assert same_tensors(model.state_dict(), state)
        with pytest.raises(RuntimeError):
            create_model("mobilevitv3_xxs", num_classes=5, checkpoint=state)


def test_initial_weights() -> None:
    model = create_model("mobilevitv2_050", num_classes=1000)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            assert module.weight.eq(1).all()
        if getattr(module, "bias", None) is not None:
            assert module.bias.eq(0).all()
    depthwise, pointwise = model.stages[4][0].conv2_kxk.conv, model.stages[4][0].conv1_1x1.conv
    assert depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert pointwise.weight.std().item() == pytest.approx((2 / pointwise.out_channels) ** 0.5, rel=0.05)
    assert model.head.fc.weight.std().item() == pytest.approx(0.02, rel=0.02)


def test_weights_that_are_loaded_are_not_drawn_first(random_model: Random) -> None:
    state, before = random_model("mobilevitv2_050").state_dict(), torch.random.get_rng_state()
    create_model("mobilevitv2_050", checkpoint=state)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_classifier_that_is_not_loaded_has_initial_weights(random_model: Random) -> None:
    state = random_model("mobilevitv2_050", num_classes=3).state_dict()
    with pytest.warns(UserWarning, match="keeps its fresh weights"):
        classifier = create_model("mobilevitv2_050", num_classes=1000, checkpoint=state).head.fc
    assert classifier.weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert classifier.bias.eq(0).all()


@pytest.mark.parametrize(
    ("value", "divisor", "minimum", "expected"),
    [
        (32, 8, None, 32),
        (33, 8, None, 32),
        (36, 8, None, 40),
        (11, 8, None, 16),
        (3, 8, None, 8),
        (20, 8, 24, 24),
    ],
)
def test_make_divisible(value: float, divisor: int, minimum: int | None, expected: int) -> None:
    assert make_divisible(value, divisor, minimum) == expected

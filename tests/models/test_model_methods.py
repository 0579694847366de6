"""The methods and attributes that users of timm expect, compared with timm's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mobilevit_kernels.models import MultiHeadAttention, create_model, list_models
from mobilevit_kernels.models.layers import DropPath, InvertedResidual
from mobilevit_kernels.models.transformer import SeparableTransformerLayer, TransformerLayer

Pairs = Callable[..., tuple[nn.Module, nn.Module]]
SMALL = ["mobilevit_xxs", "mobilevitv2_050"]
ATTRIBUTES = ("num_classes", "num_features", "head_hidden_size", "in_chans", "global_pool", "drop_rate")


def assert_same_attributes(pair: tuple[nn.Module, nn.Module]) -> None:
    theirs, ours = pair
    assert {key: getattr(ours, key) for key in ATTRIBUTES} == {
        key: getattr(theirs, key) for key in ATTRIBUTES
    }


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"num_classes": 7, "in_chans": 4, "drop_rate": 0.2},
        {"num_classes": 0},
        {"num_classes": 0, "global_pool": ""},
        {"num_classes": 3, "global_pool": "max"},
        {"num_classes": 3, "global_pool": "avgmax"},
        {"num_classes": 3, "global_pool": "catavgmax"},
    ],
)
def test_heads(name: str, kwargs: dict, timm_pair: Pairs, assert_same: Callable[..., None]) -> None:
    theirs, ours = timm_pair(name, **kwargs)
    assert_same_attributes((theirs, ours))
    x = torch.rand(2, kwargs.get("in_chans", 3), 64, 64)
    features = ours.forward_features(x)
    assert_same(ours(x), theirs(x))
    assert_same(ours.forward_head(features, pre_logits=True), theirs.forward_head(features, pre_logits=True))
    assert type(ours.get_classifier()) is type(theirs.get_classifier())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kwargs", [{}, {"global_pool": "catavgmax"}, {"global_pool": "avg"}])
def test_reset_classifier(
    name: str, kwargs: dict, timm_pair: Pairs, assert_same: Callable[..., None]
) -> None:
    theirs, ours = timm_pair(name)
    for num_classes in (5, 0, 3):
        theirs.reset_classifier(num_classes, **kwargs)
        ours.reset_classifier(num_classes, **kwargs)
        ours.load_state_dict(theirs.state_dict(), strict=True)
        assert_same_attributes((theirs, ours))
        x = torch.rand(2, 3, 64, 64)
        assert_same(ours(x), theirs(x))


def test_reset_keeps_dtype_and_mode() -> None:
    model = create_model("mobilevit_xxs").to(torch.bfloat16).eval()
    model.reset_classifier(5)
    assert model.get_classifier().weight.dtype == torch.bfloat16
    assert not model.get_classifier().training
    assert model.get_classifier().bias.eq(0).all()


@pytest.mark.parametrize(
    ("num_classes", "global_pool", "message"),
    [
        (-1, None, "num_classes: expected 0 or more, got -1"),
        (3, "median", "global_pool: expected one of .*'avg'.*, got 'median'"),
        (3, "", "needs num_classes=0"),
    ],
)
def test_bad_heads(num_classes: int, global_pool: str | None, message: str) -> None:
    model = create_model("mobilevit_xxs", num_classes=9)
    classifier = model.get_classifier()
    with pytest.raises(ValueError, match=message):
        model.reset_classifier(num_classes, global_pool)
    assert model.get_classifier() is classifier
    assert (model.num_classes, model.global_pool) == (9, "avg")
    with pytest.raises(ValueError, match=message):
        create_model(
            "mobilevit_xxs",
            num_classes=num_classes,
            global_pool="avg" if global_pool is None else global_pool,
        )


@pytest.mark.parametrize("name", SMALL)
def test_drop_path_rates(name: str, timm_pair: Pairs) -> None:
    """The rate of every residual branch is timm's."""
    theirs, ours = timm_pair(name, drop_path_rate=0.2)

    def rates(model: nn.Module) -> dict[str, float]:
        found = {key: getattr(module, "drop_prob", 0.0) for key, module in model.named_modules()}
        return {key: rate for key, rate in found.items() if rate}

    assert rates(ours) == pytest.approx(rates(theirs))


def test_drop_path_drops_samples() -> None:
    """In training each sample keeps the branch, rescaled, or loses it; in evaluation nothing happens."""
    drop = create_model("mobilevit_xxs", drop_path_rate=0.5).stages[4][1].transformer[0].drop_path1
    x = torch.ones(1000, 2, 3, 4)
    kept = drop(x).flatten(1)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(kept.amin(1), kept.amax(1))
    assert 0.4 < kept[:, 0].ne(0).float().mean() < 0.6
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match=r"drop_prob: expected a probability in \[0, 1\), got 1.0"):
        create_model("mobilevit_xxs", drop_path_rate=1.0)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (TransformerLayer(8, MultiHeadAttention(8)), (2, 4, 4, 8)),
        (SeparableTransformerLayer(8), (2, 8, 4, 4)),
        (InvertedResidual(8, 8), (2, 8, 4, 4)),
    ],
)
def test_drop_path_covers_every_branch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """With all branches dropped a residual layer is the identity."""
    layer.train()
    x = torch.rand(shape)
    assert not torch.equal(layer(x), x)
    for module in layer.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 1 - 1e-12
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("out_indices", [None, (2, 4), (0,), (-1, 1), 2])
def test_features_only(
    name: str, out_indices: tuple[int, ...] | int | None, timm_pair: Pairs, assert_same: Callable[..., None]
) -> None:
    kwargs = {} if out_indices is None else {"out_indices": out_indices}
    theirs, ours = timm_pair(name, features_only=True, **kwargs)
    for method in ("channels", "reduction", "module_name"):
        assert getattr(ours.feature_info, method)() == getattr(theirs.feature_info, method)()
        assert getattr(ours.feature_info, method)([1, 3]) == getattr(theirs.feature_info, method)([1, 3])
        assert getattr(ours.feature_info, method)(2) == getattr(theirs.feature_info, method)(2)
    assert ours.feature_info.out_indices == theirs.feature_info.out_indices
    assert ours.feature_info.get_dicts() == theirs.feature_info.get_dicts()
    assert ours.feature_info.get_dicts(["reduction"], 1) == theirs.feature_info.get_dicts(["reduction"], 1)
    assert len(ours.feature_info) == 5
    assert ours.feature_info[3]["module"] == "stages.3"
    x = torch.rand(1, 3, 65, 96)
    maps, expected = ours(x), theirs(x)
    assert isinstance(maps, list)
    assert len(maps) == len(expected)
    for actual, wanted in zip(maps, expected, strict=True):
        assert_same(actual, wanted)


@pytest.mark.parametrize("name", ["mobilevitv3_xxs", "mobilevitv3_050"])
def test_features_of_v3(name: str, random_model: Callable[..., nn.Module]) -> None:
    """Channels and strides are those of the maps."""
    model = random_model(name, features_only=True)
    maps = model(torch.rand(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == model.feature_info.reduction() == [2, 4, 8, 16, 32]


def test_feature_info_of_the_full_model(timm_pair: Pairs) -> None:
    theirs, ours = timm_pair("mobilevit_xxs")
    assert ours.feature_info == theirs.feature_info


def test_bad_out_indices() -> None:
    with pytest.raises(ValueError, match="out_indices: expected indices of 5 maps, got 5"):
        create_model("mobilevit_xxs", features_only=True, out_indices=(1, 5))


@pytest.mark.parametrize("name", list_models())
def test_evaluation_settings_are_timms(name: str) -> None:
    """timm builds its transform from the model; v3 has no counterpart there."""
    import timm
    from timm.data import resolve_model_data_config

    with torch.device("meta"):
        ours = resolve_model_data_config(create_model(name))
        assert ours["input_size"] == (3, 256, 256)
        assert (ours["mean"], ours["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        if not name.startswith("mobilevitv3"):
            assert ours == resolve_model_data_config(timm.create_model(name))


@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64, 64), r"x: expected 3 channels \(in_chans\), got 1 in \[1, 1, 64, 64\]"),
        ((3, 64, 64), r"x: expected images \[B, 3, H, W\], got 3 dimensions"),
        ((1, 3, 0, 64), r"x: expected at least one pixel, got \[1, 3, 0, 64\]"),
    ],
)
def test_bad_images(features_only: bool, shape: tuple[int, ...], message: str) -> None:
    model = create_model("mobilevit_xxs", features_only=features_only).eval()
    with pytest.raises(ValueError, match=message):
        model(torch.rand(shape))


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_hooks_of_stages_run_as_in_timm(
    name: str, timm_pair: Pairs, assert_same: Callable[..., None]
) -> None:
    """A hook on every stage sees the map that timm's sees: hooks, profilers and FSDP rely on them."""
    seen: list[list[Tensor]] = []
    for model in timm_pair(name, num_classes=5):
        maps: list[Tensor] = []
        for stage in model.stages:
            stage.register_forward_hook(lambda module, args, out, maps=maps: maps.append(out))
        with torch.no_grad():
            model(torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
        seen.append(maps)
    theirs, ours = seen
    assert len(ours) == len(theirs) == 5
    for actual, expected in zip(ours, theirs, strict=True):
        assert_same(actual, expected)

"""Names, parameter counts and state-dict entries of every variant."""

import pytest
import torch

from mobilevit_kernels.models import create_model, list_models

# Parameters as published by the authors of each generation; entries of their state dicts.
PUBLISHED = {
    "mobilevit_xxs": (1_272_024, 311),
    "mobilevit_xs": (2_317_848, 311),
    "mobilevit_s": (5_578_632, 311),
    "mobilevitv2_050": (1_370_593, 269),
    "mobilevitv2_075": (2_866_009, 269),
    "mobilevitv2_100": (4_901_841, 269),
    "mobilevitv2_125": (7_478_089, 269),
    "mobilevitv2_150": (10_594_753, 269),
    "mobilevitv2_175": (14_251_833, 269),
    "mobilevitv2_200": (18_449_329, 269),
    "mobilevitv3_xxs": (1_249_448, 311),
    "mobilevitv3_xs": (2_490_360, 311),
    "mobilevitv3_s": (5_763_912, 311),
    "mobilevitv3_xxs_fast": (1_145_288, 287),
    "mobilevitv3_xs_fast": (2_257_320, 287),
    "mobilevitv3_s_fast": (5_169_864, 287),
    "mobilevitv3_050": (1_429_985, 269),
    "mobilevitv3_075": (2_999_641, 269),
    "mobilevitv3_100": (5_139_409, 269),
}
TIMM_NAMES = [name for name in PUBLISHED if not name.startswith("mobilevitv3")]


def test_names_are_those_published() -> None:
    assert set(list_models()) == set(PUBLISHED)
    assert list_models() == sorted(list_models())


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    parameters, entries = PUBLISHED[name]
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_state_dict_is_timms(name: str) -> None:
    """Same keys in the same order with the same shapes."""
    import timm

    with torch.device("meta"):
        ours, theirs = create_model(name), timm.create_model(name)
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("name", "head", "fusion"),
    [
        ("mobilevitv3_xxs", 512, [(64, 64 + 64, 1, 1), (80, 80 + 80, 1, 1), (128, 96 + 128, 1, 1)]),
        ("mobilevitv3_xs", 640, [(96, 96 + 96, 1, 1), (160, 120 + 160, 1, 1), (160, 144 + 160, 1, 1)]),
        ("mobilevitv3_s", 960, [(128, 144 + 128, 1, 1), (256, 192 + 256, 1, 1), (320, 240 + 320, 1, 1)]),
    ],
)
def test_v3_shapes(name: str, head: int, fusion: list[tuple[int, ...]]) -> None:
    """Depthwise local convolution, 1x1 fusion over local + global, head capped at 960 channels."""
    with torch.device("meta"):
        state = create_model(name).state_dict()
    for stage, shape in zip((2, 3, 4), fusion, strict=True):
        assert state[f"stages.{stage}.1.conv_kxk.conv.weight"].shape == (shape[0], 1, 3, 3)
        assert state[f"stages.{stage}.1.conv_fusion.conv.weight"].shape == shape
    assert state["final_conv.conv.weight"].shape[0] == head


def test_v3_separable_shapes() -> None:
    """The projection reads twice the token channels and there is no convolution before the pooling."""
    with torch.device("meta"):
        state = create_model("mobilevitv3_100").state_dict()
    for stage, (channels, dim) in zip((2, 3, 4), ((256, 128), (384, 192), (512, 256)), strict=True):
        assert state[f"stages.{stage}.1.conv_proj.conv.weight"].shape == (channels, 2 * dim, 1, 1)
    assert not any(key.startswith("final_conv") for key in state)

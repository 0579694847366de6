"""output_stride 8 and 16: dilation instead of stride, as in the published code."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mobilevit_kernels.models import create_model

Pairs = Callable[..., tuple[nn.Module, nn.Module]]
NAMES = ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xs", "mobilevitv3_050"]
# (stride, dilation) of the inverted residual, then dilation of the block's local convolution where it is dilated.
EXPECTED = {
    32: [((2, 1), 1), ((2, 1), 1), ((2, 1), 1)],
    16: [((2, 1), 1), ((2, 1), 1), ((1, 1), 2)],
    8: [((2, 1), 1), ((1, 1), 2), ((1, 2), 4)],
}


@pytest.mark.parametrize("output_stride", EXPECTED)
@pytest.mark.parametrize("name", NAMES)
def test_dilations(name: str, output_stride: int) -> None:
    """Local convolutions are dilated in the blocks on v2 and not in those on v1."""
    model = create_model(name, output_stride=output_stride)
    on_v2 = name in ("mobilevitv2_050", "mobilevitv3_050")
    for stage, ((stride, dilation), local) in zip((2, 3, 4), EXPECTED[output_stride], strict=True):
        depthwise = model.stages[stage][0].conv2_kxk.conv
        assert (depthwise.stride, depthwise.dilation) == ((stride,) * 2, (dilation,) * 2)
        assert model.stages[stage][1].conv_kxk.conv.dilation == ((local if on_v2 else 1,) * 2)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_outputs_against_timm(
    name: str, output_stride: int, timm_pair: Pairs, assert_same: Callable[..., None], backend: str
) -> None:
    """v2 is timm's; v1 is timm's once timm's local convolutions, which it alone dilates, are not."""
    theirs, ours = timm_pair(name, output_stride=output_stride)
    if name == "mobilevit_xxs":
        for stage in (2, 3, 4):
            conv = theirs.stages[stage][1].conv_kxk.conv
            conv.dilation, conv.padding = (1, 1), (1, 1)
    x = torch.rand(2, 3, 64, 96)
    assert_same(ours.forward_features(x), theirs.forward_features(x))
    assert ours.feature_info == theirs.feature_info


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", NAMES)
def test_feature_sizes(name: str, output_stride: int, random_model: Callable[..., nn.Module]) -> None:
    """The strides that feature_info tells are those of the maps, and end at output_stride."""
    model = random_model(name, features_only=True, output_stride=output_stride)
    maps = model(torch.rand(1, 3, 64, 64))
    reductions = [64 // m.shape[2] for m in maps]
    assert reductions == model.feature_info.reduction()
    assert reductions == [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]


def test_weights_do_not_depend_on_output_stride() -> None:
    strided, dilated = create_model("mobilevitv3_050"), create_model("mobilevitv3_050", output_stride=8)
    dilated.load_state_dict(strided.state_dict(), strict=True)


def test_linformer_counts_the_tokens_of_a_dilated_network(random_model: Callable[..., nn.Module]) -> None:
    model = random_model("mobilevit_xxs", attention="linformer", img_size=64, output_stride=8, num_classes=2)
    assert model.stages[4][1].transformer[0].attn.max_tokens == 16
    assert model(torch.rand(1, 3, 64, 64)).isfinite().all()


def test_bad_output_stride() -> None:
    with pytest.raises(ValueError, match=r"output_stride: expected one of \(8, 16, 32\), got 4"):
        create_model("mobilevit_xxs", output_stride=4)

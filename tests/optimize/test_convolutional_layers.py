"""Which convolutional layers ``optimize_for_inference`` runs as one op, and which it leaves as they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from capabilities import needs_avx512
from foreign_models import BUILDERS, V1_CONFIG, build_model, logits_of, randomize
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.optimize import api, convolution
from mobilevit_kernels.models.optimize.inverted_residual import FusedInvertedResidual

OURS = ("mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050")
BLOCKS = ("InvertedResidual", "BottleneckBlock", "MobileViTInvertedResidual", "MobileViTV2InvertedResidual")


def of_class(model: nn.Module, *names: str) -> list[nn.Module]:
    return [module for module in model.modules() if type(module).__name__ in names]


def model_of(name: str) -> nn.Module:
    return randomize(create_model(name, num_classes=5)).eval() if name in OURS else build_model(name)


def images() -> Tensor:
    return torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))


def check_outputs(optimized: nn.Module, model: nn.Module) -> None:
    with torch.inference_mode():
        actual, expected = logits_of(optimized, images()), logits_of(model, images())
    assert (actual - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("name", [*OURS, *(name for name in BUILDERS if "segmentation" not in name)])
def test_every_convolution_is_part_of_an_op(name: str) -> None:
    model = model_of(name)
    optimized = optimize_for_inference(model)
    assert not of_class(optimized, "Conv2d", "BatchNorm2d", *BLOCKS)
    assert len(of_class(optimized, "FusedInvertedResidual")) == len(of_class(model, *BLOCKS)) > 0
    assert of_class(optimized, "FusedConvolution")
    check_outputs(optimized, model)


class Calls(TorchDispatchMode):
    """Records every operator that runs: its name, and the size of its first argument where that is a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[int, ...] | None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        size = tuple(args[0].shape) if args and isinstance(args[0], Tensor) else None
        self.found.append((func.name(), size))
        return func(*args, **(kwargs or {}))

    def names(self) -> set[str]:
        return {name for name, _ in self.found}


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv3_xxs", "mobilevitv3_050", "timm_v1", "hf_v1"])
def test_features_are_joined_without_a_copy(name: str) -> None:
    model = model_of(name)
    optimized = optimize_for_inference(model)
    with torch.inference_mode(), Calls() as calls:
        logits_of(optimized, images())
    assert {"mobilevit::transformer", "mobilevit::separable_transformer"} & calls.names()
    assert "aten::cat" not in calls.names()
    with torch.inference_mode(), Calls() as calls:
        logits_of(model, images())
    assert "aten::cat" in calls.names()


@needs_avx512
@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_050", "timm_v1", "timm_v2", "hf_v1"]
)
def test_images_are_not_copied_to_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "has_fast_bfloat16", lambda: True)
    model = model_of(name)
    optimized = optimize_for_inference(model, torch.bfloat16)
    with torch.no_grad(), Calls() as calls:
        logits = logits_of(optimized, images())
    assert logits.dtype == torch.float32
    assert [size for name, size in calls.found if name == "aten::_to_copy"] == [(2, 5)]
    with torch.inference_mode():
        assert torch.equal(logits_of(optimized, images().bfloat16()), logits)


@needs_avx512
def test_a_network_with_layers_of_its_own_gets_images_in_their_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "has_fast_bfloat16", lambda: True)

    class TwoBranches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = create_model("mobilevitv2_050", num_classes=5)
            self.extra = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            return self.backbone(x) + self.extra(x)

    model = TwoBranches().eval()
    with torch.inference_mode():
        actual, expected = optimize_for_inference(model, torch.bfloat16)(images()), model(images())
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.1)


def test_a_watched_fusion_is_given_the_joined_map() -> None:
    model = optimize_for_inference(create_model("mobilevit_xxs", num_classes=5).eval())
    expected, seen = logits_of(model, images()), []
    fusion = next(module.conv_fusion for module in model.modules() if hasattr(module, "conv_fusion"))
    fusion.register_forward_pre_hook(lambda _, args: seen.append(args))
    assert torch.equal(logits_of(model, images()), expected)
    ((joined,),) = seen
    assert joined.shape[1] == 96


def test_dilated_blocks_of_segmentation() -> None:
    config = transformers.MobileViTConfig(**{**V1_CONFIG, "output_stride": 8})
    model = randomize(transformers.MobileViTForSemanticSegmentation(config)).eval()
    optimized = optimize_for_inference(model)
    blocks = [module for module in optimized.modules() if isinstance(module, FusedInvertedResidual)]
    assert len(blocks) == len(of_class(model, *BLOCKS))
    assert {block.sizes.dilation for block in blocks} >= {1, 2}
    check_outputs(optimized, model)


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Conv2d], str]] = {
    "3x3": (lambda: nn.Conv2d(32, 40, 3, 1, 1), "FusedWinogradConvolution"),
    "few channels": (lambda: nn.Conv2d(31, 40, 3, 1, 1), "FusedConvolution"),
    "stride": (lambda: nn.Conv2d(32, 40, 3, 2, 1), "FusedConvolution"),
    "no padding": (lambda: nn.Conv2d(32, 40, 3), "FusedConvolution"),
    "dilation": (lambda: nn.Conv2d(32, 40, 3, 1, 1, 2), "FusedConvolution"),
    "5x5": (lambda: nn.Conv2d(32, 40, 5, 1, 1), "FusedConvolution"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_which_convolutions_take_minimal_filtering(name: str) -> None:
    make, expected = CONVOLUTIONS[name]
    conv = make().eval()
    fused = convolution.fuse(conv, bare=True)
    assert type(fused).__name__ == expected
    x = torch.randn(2, conv.in_channels, 9, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), conv(x), rtol=1e-4, atol=1e-5)
    assert type(convolution.fuse(conv, torch.bfloat16, bare=True)).__name__ == "FusedConvolution"


def watch(block: nn.Module) -> None:
    block.conv1_1x1.register_forward_hook(lambda *_: None)


def use_another_activation(block: nn.Module) -> None:
    block.conv1_1x1.act = nn.ReLU()


def leave_an_activation_out(block: nn.Module) -> None:
    block.conv2_kxk.act = nn.Identity()


def activate_the_result(block: nn.Module) -> None:
    block.conv3_1x1.act = nn.SiLU()


def use_another_kernel(block: nn.Module) -> None:
    conv = block.conv2_kxk.conv
    channels = conv.in_channels
    block.conv2_kxk.conv = nn.Conv2d(channels, channels, 5, conv.stride, 2, groups=channels, bias=False)


def use_groups(block: nn.Module) -> None:
    conv = block.conv1_1x1.conv
    block.conv1_1x1.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 1, groups=2, bias=False)


def use_other_padding(block: nn.Module) -> None:
    block.conv2_kxk.conv.padding_mode = "circular"


def add_a_layer(block: nn.Module) -> None:
    block.extra = nn.ReLU()


@pytest.mark.parametrize(
    "change",
    [
        watch,
        use_another_activation,
        leave_an_activation_out,
        activate_the_result,
        use_another_kernel,
        use_groups,
        use_other_padding,
        add_a_layer,
    ],
)
def test_another_block_stays_a_block(change: Callable[[nn.Module], None]) -> None:
    model = randomize(create_model("mobilevit_xxs", num_classes=5)).eval()
    change(model.stages[1][1])
    optimized = optimize_for_inference(model)
    assert len(of_class(optimized, "InvertedResidual")) == 1
    check_outputs(optimized, model)


def test_a_layer_that_is_watched_keeps_running() -> None:
    model = randomize(create_model("mobilevit_xxs", num_classes=5)).eval()
    seen = []
    model.stem.register_forward_hook(lambda *_: seen.append(True))
    optimized = optimize_for_inference(model)
    check_outputs(optimized, model)
    assert len(seen) == 2  # once in the copy, once in the model
    assert type(optimized.stem).__name__ == "ConvNormAct"


def test_what_is_fused_can_be_seen() -> None:
    shown = repr(optimize_for_inference(create_model("mobilevitv2_050")))
    assert (
        "FusedInvertedResidual(hidden_dim=32, out_channels=32, stride=1, dilation=1, residual=False)" in shown
    )
    assert (
        "FusedConvolution(out_channels=16, kernel_size=3, stride=2, padding=1, dilation=1, silu=True)"
        in shown
    )
    assert "FusedDepthwiseConvolution(stride=1, dilation=1, silu=True)" in shown

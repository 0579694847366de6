"""v1 and v2 give timm's outputs on timm's weights, at sizes that do and do not divide into patches."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels.models import MobileViTBlock, MobileViTv2Block

Pairs = Callable[..., tuple[nn.Module, nn.Module]]
SIZES = [(256, 256), (224, 224), (192, 192), (97, 131)]
SMALL = ["mobilevit_xxs", "mobilevitv2_050"]
OTHERS = [
    "mobilevit_xs",
    "mobilevit_s",
    "mobilevitv2_075",
    "mobilevitv2_100",
    "mobilevitv2_125",
    "mobilevitv2_150",
    "mobilevitv2_175",
    "mobilevitv2_200",
]


@torch.no_grad()
def check_pair(pair: tuple[nn.Module, nn.Module], size: tuple[int, int], same: Callable[..., None]) -> None:
    """Compares maps and logits on one batch."""
    theirs, ours = pair
    x = torch.rand(2, 3, *size)
    same(ours.forward_features(x), theirs.forward_features(x))
    same(ours(x), theirs(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SMALL)
def test_outputs(
    name: str, size: tuple[int, int], timm_pair: Pairs, assert_same: Callable[..., None], backend: str
) -> None:
    check_pair(timm_pair(name), size, assert_same)


@pytest.mark.parametrize("name", OTHERS)
def test_outputs_of_every_width(name: str, timm_pair: Pairs, assert_same: Callable[..., None]) -> None:
    check_pair(timm_pair(name), (97, 66), assert_same)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", OTHERS)
def test_outputs_everywhere(
    name: str, size: tuple[int, int], timm_pair: Pairs, assert_same: Callable[..., None], backend: str
) -> None:
    check_pair(timm_pair(name), size, assert_same)


@pytest.mark.parametrize("name", SMALL)
def test_training_step(name: str, timm_pair: Pairs, assert_same: Callable[..., None], backend: str) -> None:
    """Training-mode outputs, all gradients and the running statistics are timm's."""
    theirs, ours = (model.train() for model in timm_pair(name))
    x = torch.rand(4, 3, 66, 70)
    outputs = []
    for model in (theirs, ours):
        out = model(x)
        out.square().mean().backward()
        outputs.append(out)
    assert_same(outputs[1], outputs[0], 1e-3)
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).abs().max()
    for key, parameter in ours.named_parameters():
        error = (parameter.grad - gradients[key]).abs().max()
        assert error <= 2e-3 * norm, f"{key}: {error:.3g} of {norm:.3g}"
    for (key, value), expected in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3, msg=key)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (33, 2), (2, 64)])
def test_tiny_images(
    name: str, size: tuple[int, int], timm_pair: Pairs, assert_same: Callable[..., None], backend: str
) -> None:
    """One token per pixel position in the last stages."""
    check_pair(timm_pair(name), size, assert_same)


@pytest.mark.parametrize("name", [*SMALL, "mobilevitv3_xxs", "mobilevitv3_050"])
def test_empty_batch(name: str, random_model: Callable[..., nn.Module]) -> None:
    out = random_model(name, num_classes=7)(torch.rand(0, 3, 64, 70))
    assert out.shape == (0, 7)


def test_v1_returns_the_size_and_v2_grows(random_model: Callable[..., nn.Module]) -> None:
    """At 224 the last map has 7 x 7 pixels; v2 resizes its input to whole patches and stays there."""
    x = torch.rand(1, 3, 224, 224)
    assert random_model("mobilevit_xxs").forward_features(x).shape[2:] == (7, 7)
    assert random_model("mobilevitv2_050").forward_features(x).shape[2:] == (8, 8)


@pytest.mark.parametrize(("block", "align_corners"), [(MobileViTBlock, False), (MobileViTv2Block, True)])
def test_interpolation_mode_matters(
    block: type[nn.Module], align_corners: bool, monkeypatch: pytest.MonkeyPatch, randomize: Callable
) -> None:
    """Each generation asks for its own align_corners, and the other one would give another result."""
    module = randomize(block(8, 16, 1))
    x = torch.rand(1, 8, 5, 7)
    expected = module(x)
    modes: list[bool] = []
    interpolate = F.interpolate

    def flipped(x: Tensor, size: tuple[int, int], mode: str, align_corners: bool) -> Tensor:
        modes.append(align_corners)
        return interpolate(x, size=size, mode=mode, align_corners=not align_corners)

    monkeypatch.setattr(F, "interpolate", flipped)
    assert (module(x) - expected).abs().max() > 1e-2
    assert modes
    assert all(mode is align_corners for mode in modes)

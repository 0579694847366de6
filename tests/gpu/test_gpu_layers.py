"""Whole layers as one op, next to the same layer in plain PyTorch."""

import pytest
import torch
from error_rule import max_error
from layer_problems import LAYERS, others, parameters

from mobilevit_kernels import ops, reference

pytestmark = pytest.mark.usefixtures("gpu_kernels")
# Channels and side of a map: stages of the models, an odd size, and more channels than the fused v2 layer takes.
SIZES = [(144, 32), (192, 16), (240, 8), (128, 32), (256, 8), (36, 6), (384, 16)]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> str:
    """Runs the test once per op."""
    return request.param


@pytest.mark.parametrize("float32_weights", [False, True], ids=["own-weights", "fp32-weights"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("channels", "side"), SIZES)
def test_within_twice_the_error_of_plain_pytorch(
    layer: str, channels: int, side: int, batch: int, float32_weights: bool, dtype: torch.dtype,
    device: torch.device, small: bool,
) -> None:  # fmt: skip
    if small and (side > 8 or batch > 1):
        pytest.skip("large for the interpreter")
    x = torch.randn(batch, channels, side, side).to(device, dtype)
    weights_in = torch.float32 if float32_weights else dtype
    tensors = [tensor.to(device) for tensor in parameters(layer, channels, weights_in)]
    rest = others(layer, (2, 2))
    out = getattr(ops, layer)(x, *tensors, *rest)
    plain = getattr(reference, layer)(x, *(tensor.to(dtype) for tensor in tensors), *rest)
    truth = getattr(reference, layer)(x.double(), *(tensor.double() for tensor in tensors), *rest)
    assert out.dtype == dtype
    floor = torch.finfo(dtype).eps * truth.abs().max().item()
    assert max_error(out, truth) <= 2 * max_error(plain, truth) + floor

"""Where the weights of an optimised model lie: not in the model it was made from, and once."""

import pytest
import torch
from foreign_models import BUILDERS, build_model, randomize
from torch import nn

from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model


def tensors_of(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def memory_of(model: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_of(model) if tensor.numel()}


@pytest.mark.parametrize("kind", ["ours", *BUILDERS])
def test_the_copy_shares_no_memory_with_the_model(kind: str) -> None:
    model = randomize(create_model("mobilevit_xxs")).eval() if kind == "ours" else build_model(kind)
    for module in list(model.modules())[::7]:
        module.register_forward_hook(lambda *_: None)  # layers that stay as they are
    optimized = optimize_for_inference(model)
    assert any(isinstance(module, nn.Conv2d) for module in optimized.modules())
    assert not memory_of(optimized) & memory_of(model)
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_shared_inside_the_model_stays_shared() -> None:
    model = nn.ModuleDict({"backbone": create_model("mobilevit_xxs"), "first": nn.Linear(4, 4)})
    model["second"] = nn.Linear(4, 4)
    model["second"].weight = model["first"].weight
    optimized = optimize_for_inference(model)
    assert optimized["second"].weight is optimized["first"].weight
    assert optimized["first"].weight is not model["first"].weight
    assert torch.equal(optimized["first"].weight, model["first"].weight)


def test_a_copy_of_a_copy() -> None:
    first = optimize_for_inference(randomize(create_model("mobilevit_xxs")))
    second = optimize_for_inference(first)
    assert not memory_of(second) & memory_of(first)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(second(x), first(x))


def test_weights_are_held_once() -> None:
    """3x3 kernels for minimal filtering as 16 numbers in place of 9."""
    model = create_model("mobilevit_s")
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    filtered = sum(weight.nbytes for weight in kernels if weight.shape[1] >= 32)
    plain, packed = (
        sum(tensor.nbytes for tensor in tensors_of(one)) for one in (model, optimize_for_inference(model))
    )
    assert 0.9 * plain < packed - filtered * 7 / 9 < 1.05 * plain

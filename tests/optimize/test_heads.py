"""The classifier of an optimised model: one op with the pooling before it, and whole where its parts are wanted."""

import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from foreign_models import build_model, logits_of, randomize
from torch import Tensor, nn

from mobilevit_kernels import optimize_for_inference
from mobilevit_kernels.models import create_model
from mobilevit_kernels.models.optimize.head import OneOpHead, PackedLinear

CREATE: dict[str, Callable[..., nn.Module]] = {"ours": create_model, "timm": timm.create_model}


@pytest.fixture(params=list(CREATE))
def create(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    """Builds a small model with telling weights, in evaluation mode."""
    build = CREATE[request.param]
    return lambda **options: randomize(build("mobilevitv2_050", **{"num_classes": 7, **options})).eval()


def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def check_outputs(optimized: nn.Module, model: nn.Module) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(optimized(images()), model(images()), rtol=1e-4, atol=1e-4)


def ops_of(model: nn.Module) -> list[str]:
    """Names of all ops that a call runs, those inside of others too."""
    with torch.inference_mode(), torch.autograd.profiler.profile() as profile:
        logits_of(model, images())
    return [event.name for event in profile.function_events]


@pytest.mark.parametrize("kind", ["timm_v1", "timm_v2", "hf_v1", "hf_v2", "ours"])
def test_the_classifier_is_part_of_an_op(kind: str) -> None:
    model = randomize(create_model("mobilevit_xxs")).eval() if kind == "ours" else build_model(kind)
    names = ops_of(optimize_for_inference(model))
    assert names.count("mobilevit::pooled_linear") == 1
    assert not {"aten::linear", "aten::addmm"} & set(names)
    assert ("aten::mean" in names) == kind.startswith("hf")


def test_the_image_is_not_copied(create: Callable[..., nn.Module]) -> None:
    assert not {"aten::clone", "aten::copy_"} & set(ops_of(optimize_for_inference(create())))


def test_parts_of_the_head(create: Callable[..., nn.Module]) -> None:
    model = create()
    optimized = optimize_for_inference(model)
    with torch.inference_mode():
        features, expected = optimized.forward_features(images()), model.forward_features(images())
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
        pooled = optimized.forward_head(features, pre_logits=True)
        torch.testing.assert_close(pooled, features.mean(dim=(2, 3)))
        logits = optimized.forward_head(features)
        assert type(optimized.get_classifier()) is PackedLinear
        torch.testing.assert_close(optimized.get_classifier()(pooled), logits)
        torch.testing.assert_close(logits, model.get_classifier()(pooled), rtol=1e-4, atol=1e-4)


def test_a_classifier_takes_vectors_of_any_dimensions() -> None:
    linear = nn.Linear(12, 5)
    packed, x = PackedLinear(linear), torch.randn(2, 3, 12)
    torch.testing.assert_close(packed(x), linear(x))
    torch.testing.assert_close(packed(x[0, 0]), linear(x[0, 0]))


@pytest.mark.parametrize(("num_classes", "pool"), [(3, None), (4, "max"), (0, None)])
def test_a_reset_classifier(create: Callable[..., nn.Module], num_classes: int, pool: str | None) -> None:
    optimized = optimize_for_inference(create())
    optimized.reset_classifier(num_classes, pool)
    with torch.no_grad():
        features = optimized.forward_features(images())
        expected = features.amax(dim=(2, 3)) if pool else features.mean(dim=(2, 3))
        if num_classes:
            classifier = optimized.get_classifier()
            expected = F.linear(expected, classifier.weight, classifier.bias)
        torch.testing.assert_close(optimized(images()), expected)


@pytest.mark.parametrize(
    "options", [{"global_pool": "max"}, {"global_pool": "catavgmax"}, {"num_classes": 0}]
)
def test_other_heads(create: Callable[..., nn.Module], options: dict[str, object]) -> None:
    model = create(**options)
    optimized = optimize_for_inference(model)
    assert not isinstance(optimized.head, OneOpHead)
    check_outputs(optimized, model)


@pytest.mark.parametrize("part", ["global_pool", "drop", "fc"])
@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_parts_that_are_watched_run(create: Callable[..., nn.Module], part: str, before: bool) -> None:
    model, seen = create(), []

    def watch(target: nn.Module) -> None:
        target.head.get_submodule(part).register_forward_hook(lambda *_: seen.append(True))

    if before:
        watch(model)
    optimized = optimize_for_inference(model)
    if not before:
        watch(optimized)
    with torch.inference_mode():
        optimized(images())
    assert len(seen) == 1
    check_outputs(optimized, model)


def test_dropout_acts_in_training_mode_alone(create: Callable[..., nn.Module]) -> None:
    model = create(drop_rate=0.5)
    optimized = optimize_for_inference(model)
    check_outputs(optimized, model)
    optimized.train()
    with torch.no_grad():
        first, second = (optimized(images()) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", ["timm_v1", "hf_v1"])
def test_foreign_models_keep_their_device_and_dtype_and_pickle(kind: str) -> None:
    optimized = optimize_for_inference(build_model(kind))
    parameters = list(optimized.parameters())
    assert [(p.device.type, p.dtype, p.requires_grad) for p in parameters] == [("cpu", torch.float32, False)]
    pickled = pickle.loads(pickle.dumps(optimized))
    with torch.inference_mode():
        assert torch.equal(logits_of(pickled, images()), logits_of(optimized, images()))

"""The recipes of examples/train.py against the papers' numbers and closed forms; its digits."""

import math
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from mobilevit_kernels import list_models

Import = Callable[[str], ModuleType]


@pytest.fixture
def recipes(example_module: Import) -> ModuleType:
    return example_module("train_recipes")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("mobilevit_xxs", {"peak_lr": 2e-3, "last_lr": 2e-4, "warmup": 3000, "transformer_dropout": 0.05}),
        (
            "mobilevit_s",
            {"multi_scale": True, "decay_vectors": True, "clip": None, "transformer_dropout": 0.1},
        ),
        ("mobilevitv2_050", {"peak_lr": 9e-3, "last_lr": 9e-4, "first_lr": 1e-6, "weight_decay": 0.004}),
        ("mobilevitv2_200", {"peak_lr": 2e-3, "weight_decay": 0.05, "warmup": 20_000, "clip": 10.0}),
        ("mobilevitv3_xxs_fast", {"multi_scale": True, "images": 384, "transformer_dropout": 0.05}),
        ("mobilevitv3_s", {"multi_scale": True, "images": 192, "weight_decay": 0.01}),
        ("mobilevitv3_075", {"peak_lr": 2e-3, "last_lr": 2e-4, "weight_decay": 0.05, "multi_scale": False}),
    ],
)
def test_published_recipes(recipes: ModuleType, model: str, expected: dict[str, object]) -> None:
    recipe = recipes.recipe_of(model)
    assert {name: pytest.approx(getattr(recipe, name)) for name in expected} == expected
    assert recipe.strong == (not recipe.multi_scale)


def test_every_model_has_a_recipe(recipes: ModuleType) -> None:
    for model in list_models():
        recipe = recipes.recipe_of(model)
        assert recipe.first_lr < recipe.peak_lr > recipe.last_lr


def test_rates_of_another_batch_and_a_shorter_run(recipes: ModuleType) -> None:
    recipe = recipes.scaled(recipes.recipe_of("mobilevit_s"), images=64, updates=700)
    assert (recipe.peak_lr, recipe.last_lr, recipe.warmup) == (pytest.approx(5e-4), pytest.approx(5e-5), 70)
    recipe = recipes.scaled(recipes.recipe_of("mobilevit_s"), images=64, updates=10**6, peak_lr=1e-2)
    assert (recipe.peak_lr, recipe.first_lr, recipe.warmup) == (
        pytest.approx(1e-2),
        pytest.approx(1e-3),
        3000,
    )


@pytest.mark.parametrize("warmup", [0, 10])
def test_learning_rate_of_every_update(recipes: ModuleType, warmup: int) -> None:
    """Against the closed form: linear, then a cosine."""
    recipe = recipes.Recipe(warmup=warmup, peak_lr=1.0, first_lr=0.1, last_lr=0.2)
    optimizer = recipes.make_optimizer(nn.Linear(2, 2), recipe)
    schedule = recipes.make_schedule(optimizer, recipe, updates=50)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    for update, rate in enumerate(rates):
        part = (update - warmup) / (50 - warmup)
        cosine = 0.2 + 0.5 * 0.8 * (1 + math.cos(math.pi * part))
        assert rate == pytest.approx(0.1 + 0.9 * update / warmup if update < warmup else cosine)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


@pytest.mark.parametrize("decay_vectors", [True, False])
def test_what_decays(recipes: ModuleType, decay_vectors: bool) -> None:
    """With gradients of zero only weight decay moves a parameter."""
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = recipes.make_optimizer(model, recipes.Recipe(weight_decay=0.5, decay_vectors=decay_vectors))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == ({"0.weight", "0.bias", "1.weight"} if decay_vectors else {"0.weight"})


def test_averaged_weights(recipes: ModuleType) -> None:
    """Weights and BatchNorm statistics, against the recursion written out."""
    model = nn.BatchNorm1d(2)
    mean = recipes.averaged(model, momentum=0.3)
    expected = None
    for update in range(40):
        value = torch.full((2,), float(update))
        with torch.no_grad():
            model.weight.copy_(value)
        model.running_mean.copy_(value)
        model.num_batches_tracked.fill_(update)
        mean.update_parameters(model)
        share = max(0.3, 9 / (10 + update))
        expected = value if expected is None else expected + share * (value - expected)
        torch.testing.assert_close(mean.module.weight.detach(), expected)
        torch.testing.assert_close(mean.module.running_mean, expected)
    assert mean.module.num_batches_tracked == 39


def test_digits(example_module: Import) -> None:
    """A fifth is held out; no digit is in both parts."""
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    train, held_out, classes = example_module("train_data").read_digits()
    assert (len(train), len(held_out), classes) == (1438, 359, list("0123456789"))
    shown = sorted((image.tobytes(), label) for image, label in [*train, *held_out])
    digits = sklearn_datasets.load_digits()
    grey = (digits.images * (255 / 16)).round().astype("uint8")[..., None].repeat(3, -1)
    assert shown == sorted(
        (image.tobytes(), label) for image, label in zip(grey, digits.target.tolist(), strict=True)
    )


def test_augmented_digits(example_module: Import) -> None:
    """Of the size asked for, near the plain upscaling, never the same twice."""
    pytest.importorskip("sklearn")
    module = example_module("train_data")
    image = module.read_digits()[0][0][0]
    plain = torch.tensor(np.array(image.convert("L")), dtype=torch.float32)[None, None] / 255
    plain = nn.functional.interpolate(plain, (24, 32), mode="bilinear")[0]
    first, second = (module.augment_digit(image, (24, 32)) for _ in range(2))
    assert first.shape == (3, 24, 32)
    assert 0 <= first.min() < first.max() <= 1
    assert not torch.equal(first, second)
    correlations = [
        torch.corrcoef(torch.stack([x[0].flatten(), plain[0].flatten()]))[0, 1] for x in (first, second)
    ]
    assert min(correlations) > 0.3

"""Accelerated models in timm's own training utilities, against the same training of timm's model."""

import argparse
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn

from mobilevit_kernels.data import seeded
from mobilevit_kernels.models import accelerate, accelerated_modules

KINDS = ["timm_v1", "timm_v2"]
CLASSES = 5


def train(model: nn.Module, images: Tensor, folder: Path, recompute: bool) -> tuple[nn.Module, nn.Module]:
    """Three steps as timm's train.py takes them; returns the model and its moving average."""
    mixup = Mixup(mixup_alpha=0.2, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    model.to(memory_format=torch.channels_last).train().set_grad_checkpointing(recompute)
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-2, weight_decay=0.02)
    schedule = CosineLRScheduler(optimizer, t_initial=4, warmup_t=1, warmup_lr_init=1e-3, t_in_epochs=False)
    scaler, average = NativeScaler("cpu"), ModelEmaV3(model, decay=0.5)
    args = argparse.Namespace(model="any")
    saver = CheckpointSaver(model, optimizer, args, average, scaler, checkpoint_dir=str(folder))
    labels = torch.arange(len(images)) % CLASSES
    for step in range(3):
        with seeded(step):
            mixed, targets = mixup(images.clone(), labels)
        loss = SoftTargetCrossEntropy()(model(mixed.contiguous(memory_format=torch.channels_last)), targets)
        scaler(loss, optimizer, clip_grad=5.0, parameters=model.parameters(), create_graph=False)
        optimizer.zero_grad()
        average.update(model, step=step + 1)
        schedule.step_update(step + 1)
    saver.save_checkpoint(0, metric=1.0)
    return model, average.module


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def statistics(model: nn.Module, at_the_end_of_stages: nn.Module) -> Tensor:
    """Running means and variances: those of the last norm of every stage are another model's."""
    last = {id(norms(stage)[-1]) for stage in model.stages}
    pairs = zip(norms(model), norms(at_the_end_of_stages), strict=True)
    chosen = [other if id(norm) in last else norm for norm, other in pairs]
    return torch.cat([torch.cat([norm.running_mean, norm.running_var]) for norm in chosen])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_as_timms(
    kind: str, recompute: bool, build: Callable[..., nn.Module], images: Callable[..., Tensor], tmp_path: Path
) -> None:
    """In float64, for BatchNorm over four images and Adam blow rounding up.

    Where timm computes a stage again its statistics move twice in a step; ours move once in the norm that ends it.
    """
    x = images(batch=4).double()
    start = build(kind).double()
    expected, once, actual = (
        train(model, x, folder, again)
        for model, folder, again in (
            (build(kind).double(), tmp_path, recompute),
            (build(kind).double(), tmp_path, False),
            (accelerate(build(kind).double()), tmp_path, recompute),
        )
    )
    assert accelerated_modules(actual[0]) == accelerated_modules(actual[1]) != []
    for ours, theirs, unrepeated in zip(actual, expected, once, strict=True):
        moved = parameters(theirs) - parameters(start)
        assert moved.abs().max() > 1e-3
        assert (parameters(ours) - parameters(theirs)).abs().max() <= 1e-6 * moved.abs().max()
        wanted = statistics(theirs, unrepeated)
        moved = wanted - statistics(start, start)
        assert moved.abs().max() > 1e-3
        assert (statistics(ours, ours) - wanted).abs().max() <= 1e-6 * moved.abs().max()


def test_its_checkpoint_fits_timms_model(
    build: Callable[..., nn.Module], images: Callable[..., Tensor], tmp_path: Path
) -> None:
    trained, average = train(accelerate(build("timm_v1")), images(batch=4), tmp_path, recompute=False)
    saved = torch.load(tmp_path / "last.pth.tar", weights_only=False)
    for name, source in (("state_dict", trained), ("state_dict_ema", average)):
        plain = build("timm_v1")
        plain.load_state_dict(saved[name])
        x = images()
        torch.testing.assert_close(plain(x), source.eval()(x), rtol=1e-4, atol=1e-4)

"""The papers' recipes for train.py: optimizer, learning rate, averaged weights."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from torch.optim.swa_utils import AveragedModel

from mobilevit_kernels.cli.preprocess import model_generation

V2_PEAK_LR = {
    "050": 9e-3,
    "075": 9e-3,
    "100": 7.5e-3,
    "125": 4.9e-3,
    "150": 3.5e-3,
    "175": 2.6e-3,
    "200": 2e-3,
}
V2_DECAY = {"050": 0.004, "075": 0.008, "100": 0.013, "125": 0.020, "150": 0.029, "175": 0.039, "200": 0.05}


@dataclass(frozen=True)
class Recipe:
    """How a model was trained on ImageNet-1k in 300 epochs; the defaults are those of v1.

    Attributes:
        images: of one update, over all processes, that the learning rates are for.
        multi_scale: the size changes from batch to batch, and the batch with it.
        strong: RandAugment, random erasing, and MixUp or CutMix, besides crop and flip.
        peak_lr: learning rate after the warm-up.
        last_lr: learning rate at the end of the cosine.
        first_lr: learning rate at the start of the linear warm-up.
        warmup: updates of the warm-up.
        weight_decay: of AdamW.
        decay_vectors: biases and norms decay too.
        clip: largest norm of the gradient, or None.
        drop_rate: dropout before the classifier.
        transformer_dropout: dropout inside the transformers.
    """

    images: int = 1024
    multi_scale: bool = True
    strong: bool = False
    peak_lr: float = 2e-3
    last_lr: float = 2e-4
    first_lr: float = 2e-4
    warmup: int = 3000
    weight_decay: float = 0.01
    decay_vectors: bool = True
    clip: float | None = None
    drop_rate: float = 0.1
    transformer_dropout: float = 0.1


def recipe_of(model: str) -> Recipe:
    """The recipe of a name of ``list_models``: v1, v2, v3 on v1, or v3 on v2 blocks."""
    generation, on_v1 = model_generation(model)
    dropout = 0.05 if model.removesuffix("_fast").endswith("_xxs") else 0.1
    if on_v1:
        images = 1024 if generation == 1 else 384 if dropout == 0.05 else 192
        return Recipe(images=images, transformer_dropout=dropout)
    width = model.rpartition("_")[2]
    on_v2 = Recipe(
        multi_scale=False,
        strong=True,
        warmup=20_000,
        decay_vectors=False,
        clip=10.0,
        drop_rate=0.0,
        transformer_dropout=0.0,
    )
    if generation == 3:
        return replace(on_v2, images=480, weight_decay=0.05)
    lr = V2_PEAK_LR[width]
    return replace(on_v2, peak_lr=lr, last_lr=lr / 10, first_lr=1e-6, weight_decay=V2_DECAY[width])


def scaled(recipe: Recipe, images: int, updates: int, peak_lr: float | None = None) -> Recipe:
    """The recipe for another number of images in an update and for a shorter run.

    Learning rates follow the root of the images, as is usual for Adam; the warm-up is at most a tenth of the updates.
    ``peak_lr``, where given, replaces the peak as it is, and the other rates keep their ratio to it.
    """
    factor = peak_lr / recipe.peak_lr if peak_lr is not None else (images / recipe.images) ** 0.5
    return replace(
        recipe,
        peak_lr=recipe.peak_lr * factor,
        last_lr=recipe.last_lr * factor,
        first_lr=recipe.first_lr * factor,
        warmup=min(recipe.warmup, updates // 10),
    )


def make_optimizer(model: nn.Module, recipe: Recipe) -> AdamW:
    """AdamW with the recipe's weight decay."""
    parameters = list(model.parameters())
    vectors = [p for p in parameters if p.dim() <= 1 and not recipe.decay_vectors]
    kept = {id(p) for p in vectors}
    groups = [{"params": [p for p in parameters if id(p) not in kept], "weight_decay": recipe.weight_decay}]
    if vectors:
        groups.append({"params": vectors, "weight_decay": 0.0})
    return AdamW(groups, lr=recipe.peak_lr, fused=True)


def make_schedule(optimizer: AdamW, recipe: Recipe, updates: int) -> LRScheduler:
    """Linear warm-up, then a cosine over the remaining updates; one step an update."""
    cosine = CosineAnnealingLR(optimizer, max(1, updates - recipe.warmup), recipe.last_lr)
    if recipe.warmup == 0:
        return cosine
    warmup = LinearLR(optimizer, recipe.first_lr / recipe.peak_lr, total_iters=recipe.warmup)
    return SequentialLR(optimizer, [warmup, cosine], [recipe.warmup])


def averaged(model: nn.Module, momentum: float = 0.0005) -> AveragedModel:
    """Exponential moving average of weights and BatchNorm statistics.

    The momentum starts larger and falls as 9 / (10 + updates): a short run does not average its first weights.
    """

    @torch.no_grad()
    def average(means: list[Tensor], values: list[Tensor], updates: Tensor | int) -> None:
        share = max(momentum, 9 / (10 + int(updates)))
        if means[0].is_floating_point():
            torch._foreach_lerp_(means, values, share)
        else:
            torch._foreach_copy_(means, values)

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)

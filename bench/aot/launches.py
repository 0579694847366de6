"""What is compiled: the kernels that the launchers would start for the shapes of the models, and some beyond."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from bench.shapes import PATCH_SIZE, STAGE_SHAPES, StageShape
from mobilevit_kernels.models.fused_layers import MAX_CHANNELS, LayerParameters
from mobilevit_kernels.triton_kernels import separable_attn, unfold_attn_fold
from mobilevit_kernels.triton_kernels.launch import Launch, Target, record
from mobilevit_kernels.triton_kernels.separable_transformer_layer import separable_transformer_layer
from mobilevit_kernels.triton_kernels.transformer_layer import transformer_layer

# bf16 and fp16 differ in their instructions only, so that few shapes show it; fp32 and tf32 in how products are
# computed.
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
BATCHES = (1, 256)
LAYER_EPS = 1e-5
# One shape for each way the launchers go: widths between these compile to the same kernels with other constants.
STAGES = {
    "mobilevit_xxs": (32, 8),
    "mobilevit_s": (32, 16, 8),
    "mobilevitv2_050": (32,),
    "mobilevitv2_100": (32, 16, 8),
    "mobilevitv2_200": (16, 8),
}
# Beside the stages of the models: long groups, wide and odd heads, channels that are no stage's.
OTHER_SHAPES = (
    StageShape("unfold_attn_fold", "other", 144, 64, num_heads=4),
    StageShape("unfold_attn_fold", "other", 144, 22, num_heads=4),
    StageShape("unfold_attn_fold", "other", 120, 10, num_heads=4),
    StageShape("unfold_attn_fold", "other", 512, 32, num_heads=4),
    StageShape("unfold_attn_fold", "other", 512, 8, num_heads=4),
    StageShape("unfold_attn_fold", "other", 800, 16, num_heads=4),
    StageShape("separable_attn", "other", 30, 10),
    StageShape("separable_attn", "other", 128, 64),
)
SHAPES = (*(shape for shape in STAGE_SHAPES if shape.side in STAGES.get(shape.model, ())), *OTHER_SHAPES)
QUICK_SHAPES = tuple(
    shape for shape in SHAPES if shape.model in ("mobilevit_s", "mobilevitv2_100") and shape.side != 16
)


@dataclass(frozen=True)
class Problem:
    """A shape, a dtype (a name of ``DTYPES``) and a batch."""

    shape: StageShape
    dtype: str
    batch: int

    def __str__(self) -> str:
        return f"{self.shape.op} {self.shape} {self.dtype} batch {self.batch}"


def problems(quick: bool, dtypes: Sequence[str] = tuple(DTYPES)) -> list[Problem]:
    """Everything that is compiled, in these dtypes; ``quick`` leaves one model a generation and the stages that
    differ most."""
    shapes = QUICK_SHAPES if quick else SHAPES
    return [
        Problem(shape, dtype, batch)
        for shape in shapes
        for dtype in dtypes
        for batch in BATCHES
        if dtype != "bf16" or shape in QUICK_SHAPES
    ]


def launches(problem: Problem, target: Target, spilling: bool = False) -> list[Launch]:
    """Every kernel, in every candidate configuration, that a training step and inference would start.

    ``spilling`` says whether candidates on record as spilling are among them.
    """
    found: list[Launch] = []
    run = _attention if problem.shape.op == "unfold_attn_fold" else _separable
    with _tf32(problem.dtype == "tf32"), record(target, found.append, spilling):
        run(problem)
    return found


def _map(problem: Problem, channels: int) -> Tensor:
    size = (problem.batch, channels, problem.shape.side, problem.shape.side)
    return torch.empty(size, dtype=DTYPES[problem.dtype], device="meta", memory_format=torch.channels_last)


def _attention(problem: Problem) -> None:
    heads = problem.shape.num_heads
    qkv = _map(problem, 3 * problem.shape.channels)
    unfold_attn_fold.unfold_attn_fold(qkv, heads, PATCH_SIZE)
    out, logsumexp = unfold_attn_fold.unfold_attn_fold_forward(qkv, heads, PATCH_SIZE)
    unfold_attn_fold.unfold_attn_fold_backward(out, qkv, out, logsumexp, heads, PATCH_SIZE)
    for dtype in _layer_dtypes(problem):
        parameters = _layer_parameters(out, 3 * problem.shape.channels, dtype)
        transformer_layer(out, *parameters, num_heads=heads, patch_size=PATCH_SIZE, eps=LAYER_EPS)


def _separable(problem: Problem) -> None:
    channels = problem.shape.channels
    x = _map(problem, channels)

    def parameter(*size: int) -> Tensor:
        return torch.empty(size, dtype=x.dtype, device="meta")

    qkv_weight, qkv_bias = parameter(1 + 2 * channels, channels), parameter(1 + 2 * channels)
    out_weight, out_bias = parameter(channels, channels), parameter(channels)
    weights = (qkv_weight, qkv_bias, out_weight, out_bias)
    separable_attn.separable_attn(x, *weights, PATCH_SIZE)
    out, scores, pooled, context = separable_attn.separable_attn_forward(x, *weights, PATCH_SIZE)
    separable_attn.separable_attn_backward(
        out, x, *weights[:3], scores, pooled, context, PATCH_SIZE, [True, True]
    )
    for dtype in _layer_dtypes(problem):
        layer_parameters = _layer_parameters(x, 1 + 2 * channels, dtype)
        separable_transformer_layer(x, *layer_parameters, patch_size=PATCH_SIZE, eps=LAYER_EPS)


def _layer_dtypes(problem: Problem) -> tuple[torch.dtype, ...]:
    """Of the parameters of a layer that the models run as one op; float32 under autocast."""
    dtype = DTYPES[problem.dtype]
    fused = dtype.itemsize == 2 and problem.batch == min(BATCHES) and problem.shape.channels <= MAX_CHANNELS
    return (dtype, torch.float32) if fused else ()


def _layer_parameters(x: Tensor, projected: int, dtype: torch.dtype) -> LayerParameters:
    """Of a layer with ``projected`` rows of its first projection: norms, attention and feed-forward network."""
    channels = x.shape[1]
    hidden = 2 * channels

    def empty(*size: int) -> Tensor:
        return torch.empty(size, dtype=dtype, device="meta")

    def linear(rows: int, columns: int) -> list[Tensor]:
        return [empty(rows, columns), empty(rows)]

    norm = [empty(channels), empty(channels)]
    attention = linear(projected, channels) + linear(channels, channels)
    found = norm + attention + norm + linear(hidden, channels) + linear(channels, hidden)
    return cast("LayerParameters", tuple(found))


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    previous = matmul.allow_tf32
    matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32 = previous

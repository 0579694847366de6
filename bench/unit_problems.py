"""The problems of the comparison of attention units: one layer on N tokens, and MobileViT-S with each unit in place."""

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from bench.plain_attention import plain_unit
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.cases import DTYPES
from mobilevit_kernels.benchmark.inference import with_optimized
from mobilevit_kernels.benchmark.networks import (
    Networks,
    network_problem,
    randomize_batch_norms,
    run_network,
    with_layout_names,
)
from mobilevit_kernels.models import (
    LinformerAttention,
    MultiHeadAttention,
    SeparableAttention,
    create_model,
)

PLAIN = "plain PyTorch"
UNITS = ("mha", "linformer", "separable")
DIM, HEADS, PROJECTED = 512, 8, 256
MODEL = "mobilevit_s"


@dataclass(frozen=True)
class UnitCase:
    """One layer of a unit on ``tokens`` tokens of 512 channels, one image, inference.

    Attributes:
        unit: one of ``UNITS``.
        tokens: N, a power of two.
        dtype: a key of ``DTYPES``; of the weights and the tokens.
    """

    unit: str
    tokens: int
    dtype: str
    batch: int = 1
    direction: str = "forward"
    model: str = "one layer"

    @property
    def subject(self) -> str:
        """The unit."""
        return self.unit

    @property
    def shape(self) -> str:
        """Channels and tokens."""
        return f"C{DIM} N{self.tokens}"

    def __str__(self) -> str:
        return f"{self.unit} {self.shape} {self.dtype}"

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates."""
        return unit_problem(self.unit, self.tokens, DTYPES[self.dtype])


@dataclass(frozen=True)
class UnitModelCase:
    """MobileViT-S with a unit in place of its attention, one image, inference.

    Attributes:
        unit: one of ``UNITS``.
        dtype: a key of ``DTYPES``; bf16 is autocast.
    """

    unit: str
    dtype: str
    batch: int = 1
    direction: str = "inference"
    shape: str = ""

    @property
    def subject(self) -> str:
        """The model and its unit."""
        return f"{MODEL} with {self.unit}"

    @property
    def model(self) -> str:
        """The model."""
        return MODEL

    def __str__(self) -> str:
        return f"{self.subject} {self.dtype}"

    def problem(self, image_side: int) -> Problem:
        """Builds the inputs and the candidates: ours optimised and eager, and the same model on the reference ops."""
        network = unit_model(self.unit, image_side)
        networks = Networks(f"{MODEL} with {self.unit}", network, network, "reference")
        images, dtype = torch.rand(1, 3, image_side, image_side), DTYPES[self.dtype]
        autocast = dtype != torch.float32
        problem = with_layout_names(network_problem(networks, images, dtype, self.direction, autocast))
        return with_optimized(problem, network, images, dtype)


def unit_model(unit: str, image_side: int) -> nn.Module:
    """MobileViT-S with a unit in place and random weights."""
    torch.manual_seed(0)
    network = create_model(MODEL, attention=unit, img_size=image_side)
    randomize_batch_norms(network)
    return network


def make_unit(unit: str, tokens: int) -> nn.Module:
    """One attention layer of 512 channels on a map whose every pixel is a token: 8 heads, 256 projected tokens."""
    if unit == "mha":
        return MultiHeadAttention(DIM, HEADS, patch_size=1)
    if unit == "linformer":
        return LinformerAttention(DIM, tokens, HEADS, patch_size=1, max_projected=PROJECTED)
    return SeparableAttention(DIM, patch_size=1)


def unit_flops(unit: str, tokens: int) -> float:
    """Operations that a layer needs; a multiply-add is two."""
    if unit == "separable":  # value and output projections
        return 2.0 * tokens * 2 * DIM**2
    keys = tokens if unit == "mha" else min(PROJECTED, tokens)
    over_tokens = 0 if unit == "mha" else 2 * keys * tokens * DIM
    # Query and output of all tokens, key and value of those that are left.
    over_channels = 2 * (tokens + keys) * DIM**2
    return 2.0 * (over_channels + over_tokens + 2 * tokens * keys * DIM)


def unit_problem(unit: str, tokens: int, dtype: torch.dtype) -> Problem:
    """Ours on the map, plain PyTorch on the tokens ``[1, N, C]``, which are the same memory, and the truth."""
    torch.manual_seed(0)
    layer = make_unit(unit, tokens).eval().to(dtype)
    height = 1 << ((tokens.bit_length() - 1) // 2)
    x = torch.randn(1, height, tokens // height, DIM).to(dtype)

    def to_map(rows: Tensor) -> Tensor:
        return rows.unflatten(1, (height, -1)).permute(0, 3, 1, 2)

    plain = partial(plain_unit(layer), x.flatten(1, 2))
    truth = partial(run_network, copy.deepcopy(layer).double(), x.double().permute(0, 3, 1, 2), "reference")
    nothing = torch.empty(0)
    return Problem(
        quantities=("out",),
        ours=Candidate(OURS, partial(layer, x.permute(0, 3, 1, 2)), (), nothing),
        peers=(Candidate(PLAIN, plain, (), nothing, to_map),),
        truth=Candidate("truth", truth, (), nothing),
        forward_flops=unit_flops(unit, tokens),
    )

"""Token mixers: everything between unfold and fold of a stage, ours on the map and the peers on unfolded tokens.

v1: L x (LayerNorm, multi-head attention, feed-forward network), LayerNorm. v2: the same of GroupNorm and separable
attention.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.shapes import MAP_SIDES, PATCH_SIZE
from mobilevit_kernels import reference
from mobilevit_kernels.benchmark.autocast import call_under_autocast
from mobilevit_kernels.benchmark.candidates import OURS, Candidate, Problem
from mobilevit_kernels.benchmark.cases import IMAGE_SIDE
from mobilevit_kernels.benchmark.engine import Engine
from mobilevit_kernels.benchmark.engines import with_engines
from mobilevit_kernels.benchmark.networks import LAYOUT_NAMES, make_networks, place_network
from mobilevit_kernels.benchmark.timm_models import has_timm_model
from mobilevit_kernels.models import MobileViTBlock, MobileViTv2Block
from mobilevit_kernels.models.configs import CONFIGS
from mobilevit_kernels.models.optimize.api import has_fast_bfloat16
from mobilevit_kernels.models.optimize.layers import fuse

_MLP_RATIO = 2


@dataclass(frozen=True)
class MixerStage:
    """One stage's token mixer.

    Attributes:
        model: a v1 or v2 model.
        stage: index of the stage in the model, 2 to 4.
        channels: width of a token.
        depth: transformer layers.
        side: height and width of the map at 256 x 256 pixels.
    """

    model: str
    stage: int
    channels: int
    depth: int
    side: int

    def __str__(self) -> str:
        return f"C{self.channels}-{self.side}x{self.side}-L{self.depth}"

    @property
    def op(self) -> str:
        """What it is called: stages of v1 and v2 may have the same shape."""
        return f"token mixer {CONFIGS[self.model].block}"

    def flops(self, batch: int, side: int) -> float:
        """Operations that the mixer needs: matrix products only, a multiply-add is two, no key projection in v2."""
        tokens = batch * side * side
        group = side * side // (PATCH_SIZE[0] * PATCH_SIZE[1])
        is_v2 = CONFIGS[self.model].block == "v2"
        # Per token, in units of C: projections (and the two products of attention), feed-forward network.
        attention = 2 * self.channels if is_v2 else 4 * self.channels + 2 * group
        return 2.0 * self.depth * tokens * self.channels * (attention + 2 * _MLP_RATIO * self.channels)


def mixer_stages(models: Sequence[str]) -> tuple[MixerStage, ...]:
    """The token mixers of v1 and v2 models."""
    return tuple(
        MixerStage(model, index, config.dim, config.depth, side)
        for model in models
        for (index, config), side in zip(
            [(index, stage) for index, stage in enumerate(CONFIGS[model].stages) if stage.dim],
            MAP_SIDES,
            strict=True,
        )
    )


def mixer_peers(stage: MixerStage) -> tuple[str, ...]:
    """The eager peers of a mixer: the tokens of v1, ``[B P, N, C]``, have one memory format; none without timm."""
    if not has_timm_model(stage.model):
        return ()
    return LAYOUT_NAMES if CONFIGS[stage.model].block == "v2" else LAYOUT_NAMES[:1]


def fused_token_mixer(
    block: MobileViTBlock | MobileViTv2Block, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor] | None:
    """This package's whole mixer as one op: a channels_last map ``[B, C, H, W]`` to the same; None where it has none.

    Args:
        block: in eval mode, float32.
        dtype: as in :func:`mobilevit_kernels.optimize_for_inference`.
    """
    in_bfloat16 = dtype == torch.bfloat16 and has_fast_bfloat16()
    return fuse(list(block.transformer), block.norm, torch.bfloat16 if in_bfloat16 else torch.float32)


def _on_tokens(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A network of tokens ``[B, H, W, C]`` on a map ``[B, C, H, W]``."""
    return network(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def mixer_problem(
    stage: MixerStage, batch: int, dtype: torch.dtype, image_side: int, engines: Sequence[Engine] = ()
) -> Problem:
    """One token mixer on random tokens with random weights, the same for every candidate.

    Args:
        stage: which mixer.
        batch: images.
        dtype: float32, or the half precision that every candidate mixes in its own way; the tokens are of it.
        image_side: side of the model's image in pixels; scales the map.
        engines: peers besides eager PyTorch.

    Raises:
        RuntimeError: timm, whose mixer is the plain one, is not installed.
    """
    networks = make_networks(stage.model)
    if networks.plain_backend is not None:
        raise RuntimeError(
            "token mixers: expected timm, whose layers are the plain ones; it is not installed"
        )
    block, plain_block = _block(networks.ours, stage), _block(networks.plain, stage)
    plain = nn.Sequential(plain_block.transformer, plain_block.norm)
    side = stage.side * image_side // IMAGE_SIDE
    x = torch.randn(batch, stage.channels, side, side).to(dtype)
    layout = _ByPosition() if isinstance(block, MobileViTv2Block) else _Sequences()
    to_map = partial(layout.to_map, size=(side, side))
    tokens = layout.to_tokens(x)

    def eager(name: str, memory: torch.memory_format, to: torch.dtype) -> Candidate:
        network = place_network(plain, x.device, memory).to(torch.promote_types(torch.float32, to))
        call: Callable[[], Tensor] = partial(network, layout.placed(tokens.to(to), memory))
        if to != torch.float64:
            call = partial(call_under_autocast, call, "cpu", dtype)
        return Candidate(name, call, (), torch.empty(0), to_map)

    memory_formats = dict(zip(LAYOUT_NAMES, (torch.contiguous_format, torch.channels_last), strict=True))
    problem = Problem(
        quantities=("out",),
        ours=_eager_ours(block, x),
        peers=tuple(eager(name, memory_formats[name], dtype) for name in mixer_peers(stage)),
        truth=eager("truth", torch.contiguous_format, torch.float64),
        forward_flops=stage.flops(batch, side),
    )
    fused = fused_token_mixer(block, dtype)
    if fused is not None:
        ours = Candidate(OURS, partial(fused, _nhwc(x)), (), torch.empty(0))
        problem = replace(problem, ours=ours, also_ours=(replace(problem.ours, name=f"{OURS} eager"),))
    return with_engines(problem, engines, plain, tokens, dtype, to_map=to_map)


def _block(network: nn.Module, stage: MixerStage) -> Any:
    """The block of a stage, ours or timm's, in eval mode."""
    return network.eval().get_submodule(f"stages.{stage.stage}.1")


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _eager_ours(block: MobileViTBlock | MobileViTv2Block, x: Tensor) -> Candidate:
    network: Callable[[Tensor], Tensor] = nn.Sequential(block.transformer, block.norm)
    if not isinstance(block, MobileViTv2Block):
        network = partial(_on_tokens, network)
    call = partial(call_under_autocast, partial(network, _nhwc(x)), "cpu", x.dtype)
    return Candidate(OURS, call, (), torch.empty(0))


class _ByPosition:
    """The tokens of v2's peers: ``[B, C, P, N]``."""

    def to_tokens(self, x: Tensor) -> Tensor:
        return reference.unfold(x, PATCH_SIZE).contiguous()

    def to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        return reference.fold(tokens, size, PATCH_SIZE)

    def placed(self, tokens: Tensor, memory: torch.memory_format) -> Tensor:
        return tokens.contiguous(memory_format=memory)


class _Sequences:
    """The tokens of v1's peers: ``[B P, N, C]``, which has one memory format."""

    def to_tokens(self, x: Tensor) -> Tensor:
        return reference.unfold(x, PATCH_SIZE).permute(0, 2, 3, 1).flatten(0, 1).contiguous()

    def to_map(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        by_position = tokens.unflatten(0, (-1, PATCH_SIZE[0] * PATCH_SIZE[1])).permute(0, 3, 1, 2)
        return reference.fold(by_position, size, PATCH_SIZE)

    def placed(self, tokens: Tensor, memory: torch.memory_format) -> Tensor:
        return tokens

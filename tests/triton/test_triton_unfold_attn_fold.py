"""Every kernel and configuration of ``unfold_attn_fold``, also those that autotuning would choose on a GPU only."""

import pytest
import torch
from torch import Tensor

from mobilevit_kernels import reference
from mobilevit_kernels.triton_kernels.launch import Config
from mobilevit_kernels.triton_kernels.token_grid import TokenGrid, pieces
from mobilevit_kernels.triton_kernels.tuning import force_config
from mobilevit_kernels.triton_kernels.unfold_attn_fold import (
    unfold_attn_fold,
    unfold_attn_fold_backward,
    unfold_attn_fold_forward,
)
from mobilevit_kernels.triton_kernels.unfold_attn_fold_configs import BACKWARD, FORWARD

FORWARD_CONFIGS = [
    Config.of(variant="resident", BLOCK_M=16, BLOCK_N=32, QUERY_BLOCKS=2, HEADS=1),
    Config.of(variant="resident", BLOCK_M=16, BLOCK_N=32, QUERY_BLOCKS=1, HEADS=2),
    Config.of(variant="resident", BLOCK_M=32, BLOCK_N=64, QUERY_BLOCKS=1, HEADS=4),
    Config.of(variant="resident", BLOCK_M=64, BLOCK_N=32, QUERY_BLOCKS=4, HEADS=1),
    Config.of(variant="online", BLOCK_M=16, BLOCK_N=16),
    Config.of(variant="online", BLOCK_M=32, BLOCK_N=16),
    Config.of(variant="online", BLOCK_M=16, BLOCK_N=64),
]
BACKWARD_CONFIGS = [
    Config.of(variant="resident", BLOCK_M=32, BLOCK_N=16, HEADS=1),
    Config.of(variant="resident", BLOCK_M=32, BLOCK_N=32, HEADS=2),
    Config.of(variant="resident", BLOCK_M=64, BLOCK_N=64, HEADS=4),
    Config.of(variant="tiled", BLOCK=16, STEP=16),
    Config.of(variant="tiled", BLOCK=32, STEP=16),
    Config.of(variant="tiled", BLOCK=16, STEP=64),
]
HEADS = 4
TOLERANCES = {torch.float32: 2e-5, torch.float16: 1e-2}


def problem(head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """qkv of 25 tokens a group, and a gradient of the output."""
    qkv = torch.randn(1, 3 * HEADS * head_dim, 10, 5).to(dtype)
    return qkv.contiguous(memory_format=torch.channels_last), torch.randn(1, HEADS * head_dim, 10, 5).to(
        dtype
    )


def expected(qkv: Tensor, grad_out: Tensor) -> tuple[Tensor, Tensor]:
    """Output and gradient of the definition in float64."""
    leaf = qkv.double().requires_grad_()
    out = reference.unfold_attn_fold(leaf, HEADS, (2, 1))
    return out.detach(), torch.autograd.grad(out, leaf, grad_out.double())[0]


@pytest.fixture(params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """What the interpreter computes."""
    return request.param


@pytest.mark.parametrize("head_dim", [16, 36])
@pytest.mark.parametrize("config", FORWARD_CONFIGS, ids=str)
def test_forward_configurations(config: Config, head_dim: int, dtype: torch.dtype) -> None:
    qkv, grad_out = problem(head_dim, dtype)
    with force_config(FORWARD, config):
        out, logsumexp = unfold_attn_fold_forward(qkv, HEADS, (2, 1))
        assert torch.equal(unfold_attn_fold(qkv, HEADS, (2, 1)), out)
    torch.testing.assert_close(out.double(), expected(qkv, grad_out)[0], rtol=0, atol=TOLERANCES[dtype])
    tokens = reference.unfold(qkv.double(), (2, 1)).reshape(1, 3, HEADS, head_dim, 2, 25)
    query, key = tokens.permute(1, 0, 4, 2, 5, 3)[:2]
    scores = query @ key.transpose(-2, -1) * head_dim**-0.5
    torch.testing.assert_close(logsumexp.double(), scores.logsumexp(-1), rtol=0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("head_dim", [16, 36])
@pytest.mark.parametrize("config", BACKWARD_CONFIGS, ids=str)
def test_backward_configurations(config: Config, head_dim: int, dtype: torch.dtype) -> None:
    qkv, grad_out = problem(head_dim, dtype)
    saved = unfold_attn_fold_forward(qkv, HEADS, (2, 1))
    with force_config(BACKWARD, config):
        grad_qkv = unfold_attn_fold_backward(grad_out, qkv, *saved, HEADS, (2, 1))
    truth = expected(qkv, grad_out)[1]
    torch.testing.assert_close(grad_qkv.double(), truth, rtol=0, atol=10 * TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("family", "config"),
    [(FORWARD, FORWARD_CONFIGS[1]), (FORWARD, FORWARD_CONFIGS[4])]
    + [(BACKWARD, BACKWARD_CONFIGS[0]), (BACKWARD, BACKWARD_CONFIGS[4])],
    ids=str,
)
def test_offsets_of_int64_give_the_same_bits(
    family: str, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, grad_out = problem(20, torch.float32)

    def everything() -> list[Tensor]:
        with force_config(family, config):
            out, logsumexp = unfold_attn_fold_forward(qkv, HEADS, (2, 1))
            return [
                out,
                logsumexp,
                unfold_attn_fold_backward(grad_out, qkv, out, logsumexp, HEADS, (2, 1)),
            ]

    narrow = everything()
    monkeypatch.setattr(TokenGrid, "is_wide", lambda self, *maps: True)
    for one, other in zip(narrow, everything(), strict=True):
        assert torch.equal(one, other)


def test_a_sample_beyond_int32_is_wide() -> None:
    grid = TokenGrid(1, 40000, 40000, (2, 2))

    def channels_last_map(channels: int) -> Tensor:
        size = (1, channels, 40000, 40000)
        return torch.empty(size, device="meta", memory_format=torch.channels_last)

    assert not grid.is_wide(channels_last_map(1))
    assert grid.is_wide(channels_last_map(2))
    assert grid.is_wide(channels_last_map(1), channels_last_map(2))


@pytest.mark.parametrize(
    ("config", "keys"),
    [(FORWARD_CONFIGS[0], 25), (FORWARD_CONFIGS[4], 25), (FORWARD_CONFIGS[4], 17)],
    ids=["resident", "online", "online-first-block"],
)
def test_scores_of_minus_infinity(config: Config, keys: int) -> None:
    """Some keys have score -inf, a whole block of them too; a row of only such scores gives NaN, as softmax does."""
    qkv = torch.ones(1, 3, 25, 1)
    qkv[:, 1, :16] = -torch.inf
    qkv[:, 1, keys:] = -torch.inf
    qkv[:, 2] = torch.arange(25.0)[:, None]
    with force_config(FORWARD, config):
        out = unfold_attn_fold(qkv, 1, (1, 1))
        torch.testing.assert_close(out, reference.unfold_attn_fold(qkv, 1, (1, 1)))
        qkv[:, 1] = -torch.inf
        assert torch.isnan(unfold_attn_fold(qkv, 1, (1, 1))).all()


@pytest.mark.parametrize("size", range(1, 300, 7))
def test_pieces_cover_a_row_with_the_least_padding(size: int) -> None:
    first, second = pieces(size)
    assert first + second >= size
    powers = [16 * 2**power for power in range(6)]
    least = min(a + b for a in powers for b in (0, *powers) if a + b >= size)
    assert first + second == least
    assert all(piece in (0, *powers) for piece in (first, second))

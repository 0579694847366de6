"""The references against truth that is not ours: timm, transformers, F.unfold, closed forms, per-pixel loops."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels import reference

PATCHES = [(2, 2), (1, 1), (2, 1), (1, 2), (4, 4), (3, 2)]


def patch_id(patch: tuple[int, int]) -> str:
    """Test id of a patch size."""
    return f"{patch[0]}x{patch[1]}"


@pytest.fixture(params=PATCHES, ids=patch_id)
def patch(request: pytest.FixtureRequest) -> tuple[int, int]:
    """Patch sizes of the papers and others."""
    return request.param


def test_unfold_order_is_that_of_torch(patch: tuple[int, int]) -> None:
    x = torch.randn(2, 5, patch[0] * 3, patch[1] * 4)
    expected = F.unfold(x, kernel_size=patch, stride=patch).view(2, 5, patch[0] * patch[1], 12)
    assert torch.equal(reference.unfold(x, patch), expected)


def test_fold_inverts_unfold(patch: tuple[int, int]) -> None:
    x = torch.randn(2, 5, patch[0] * 3, patch[1] * 4)
    assert torch.equal(reference.fold(reference.unfold(x, patch), (x.shape[2], x.shape[3]), patch), x)


def positions(problem: Any) -> list[tuple[int, list[tuple[int, int]]]]:
    """For each sample and pixel position of a problem, the (row, column) of its tokens."""
    x, (ph, pw) = problem.tensors[0], problem.args[-1 if problem.op == "separable_attn" else 1]
    rows, columns = range(x.shape[2]), range(x.shape[3])
    groups = []
    for b, i, j in itertools.product(range(x.shape[0]), range(ph), range(pw)):
        groups.append((b, [(r, c) for r in rows if r % ph == i for c in columns if c % pw == j]))
    return groups


def test_unfold_attn_fold_is_attention_written_pixel_by_pixel(
    attention: Callable[..., Any], patch: tuple[int, int]
) -> None:
    problem = attention(patch=patch, grid=(2, 3), heads=2, head_dim=3, dtype=torch.float64)
    (qkv,), heads, head_dim = problem.tensors, 2, 3
    expected = torch.empty(2, heads * head_dim, *qkv.shape[2:], dtype=torch.float64)
    for (b, tokens), head in itertools.product(positions(problem), range(heads)):
        query, key, value = (torch.arange(head_dim) + (part * heads + head) * head_dim for part in range(3))
        for row, column in tokens:
            logits = [
                (qkv[b, query, row, column] * qkv[b, key, r, c]).sum() / head_dim**0.5 for r, c in tokens
            ]
            weights = torch.stack(logits).softmax(0)
            attended = sum(w * qkv[b, value, r, c] for w, (r, c) in zip(weights, tokens, strict=True))
            expected[b, head * head_dim : (head + 1) * head_dim, row, column] = attended
    torch.testing.assert_close(problem.reference(), expected, rtol=1e-12, atol=1e-12)


def test_separable_attn_is_equation_3_written_pixel_by_pixel(
    separable: Callable[..., Any], patch: tuple[int, int]
) -> None:
    problem = separable(patch=patch, grid=(2, 3), channels=4, dtype=torch.float64, weight_dims=2)
    x, weight, bias, out_weight, out_bias = problem.tensors
    expected = torch.empty_like(x)
    for b, tokens in positions(problem):
        projected = [weight @ x[b, :, r, c] + bias for r, c in tokens]
        scores = torch.stack([p[0] for p in projected]).softmax(0)
        context = sum(s * p[1:5] for s, p in zip(scores, projected, strict=True))
        for (r, c), p in zip(tokens, projected, strict=True):
            expected[b, :, r, c] = out_weight @ (p[5:].clamp(min=0) * context) + out_bias
    torch.testing.assert_close(problem.reference(), expected, rtol=1e-12, atol=1e-12)


def as_map(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    """A linear layer on the channels of a map."""
    return lambda x: F.conv2d(x, linear.weight[..., None, None], linear.bias)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (2, 2)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_unfold_attn_fold_is_the_attention_path_of_timms_block(size: tuple[int, int]) -> None:
    from timm.layers import Attention
    from timm.models.mobilevit import MobileVitBlock

    block = MobileVitBlock(24, transformer_dim=24, transformer_depth=1, patch_size=2, no_fusion=True)
    attn = Attention(24, num_heads=4, qkv_bias=True)
    block.conv_kxk = block.conv_1x1 = block.norm = block.conv_proj = nn.Identity()
    block.transformer = attn
    x = torch.randn(2, 24, *size)
    ours = as_map(attn.proj)(reference.unfold_attn_fold(as_map(attn.qkv)(x), 4, (2, 2)))
    torch.testing.assert_close(ours, block(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("export", [False, True], ids=["permute", "F.unfold"])
def test_separable_attn_is_the_attention_path_of_timms_block(export: bool) -> None:
    from timm.models.mobilevit import LinearSelfAttention, MobileVitV2Block

    block = MobileVitV2Block(12, transformer_dim=12, transformer_depth=1, patch_size=2)
    layer = LinearSelfAttention(12)
    block.conv_kxk = block.conv_1x1 = block.norm = block.conv_proj = nn.Identity()
    block.transformer, block.coreml_exportable = layer, export
    x = torch.randn(2, 12, 6, 8)
    ours = reference.separable_attn(
        x, layer.qkv_proj.weight, layer.qkv_proj.bias, layer.out_proj.weight, layer.out_proj.bias, (2, 2)
    )
    torch.testing.assert_close(ours, block(x), rtol=1e-5, atol=1e-6)


def test_unfold_attn_fold_is_the_attention_of_transformers() -> None:
    from transformers import MobileViTConfig
    from transformers.models.mobilevit.modeling_mobilevit import MobileViTLayer, MobileViTSelfAttention

    config = MobileViTConfig(num_attention_heads=4, attention_probs_dropout_prob=0.0)
    layer = MobileViTLayer(config, in_channels=8, out_channels=8, stride=1, hidden_size=24, num_stages=1)
    attn = MobileViTSelfAttention(config, 24)
    x = torch.randn(2, 24, 8, 6)
    patches, info = layer.unfolding(x)
    expected = layer.folding(attn(patches), info)
    qkv = torch.cat([as_map(linear)(x) for linear in (attn.query, attn.key, attn.value)], dim=1)
    torch.testing.assert_close(reference.unfold_attn_fold(qkv, 4, (2, 2)), expected, rtol=1e-5, atol=1e-6)


def test_separable_attn_is_the_attention_of_transformers() -> None:
    from transformers import MobileViTV2Config
    from transformers.models.mobilevitv2 import modeling_mobilevitv2 as hf

    config = MobileViTV2Config()
    layer = hf.MobileViTV2Layer(config, in_channels=8, out_channels=8, stride=1, attn_unit_dim=16)
    attn = hf.MobileViTV2LinearSelfAttention(config, 16)
    x = torch.randn(2, 16, 8, 6)
    patches, size = layer.unfolding(x)
    expected = layer.folding(attn(patches), size)
    qkv, out = attn.qkv_proj.convolution, attn.out_proj.convolution
    ours = reference.separable_attn(x, qkv.weight, qkv.bias, out.weight, out.bias, (2, 2))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_baselines_of_the_error_rule_agree_with_the_reference(
    op: str, make_problem: Callable[..., Any], patch: tuple[int, int]
) -> None:
    problem = make_problem(op, patch=patch, dtype=torch.float64)
    torch.testing.assert_close(problem.baseline(), problem.reference(), rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("backend")
class TestClosedForms:
    """Results that follow from the definition without computing it."""

    def test_a_lone_token_attends_to_itself(self, attention: Callable[..., Any]) -> None:
        problem = attention(grid=(1, 1))
        assert torch.equal(problem.fused(), problem.tensors[0][:, 20:])

    def test_zero_queries_average_the_values(self, attention: Callable[..., Any]) -> None:
        problem = attention(patch=(1, 1), grid=(4, 3), dtype=torch.float64)
        problem.tensors[0][:, :10] = 0
        mean = problem.tensors[0][:, 20:].mean((2, 3), keepdim=True)
        torch.testing.assert_close(problem.fused(), mean.expand(-1, -1, 4, 3))

    def test_a_huge_scale_picks_the_value_of_the_nearest_key(self, attention: Callable[..., Any]) -> None:
        problem = attention(heads=1, patch=(1, 1), grid=(3, 3), scale=1e6)
        tokens = problem.tensors[0].flatten(2)
        query, key, value = tokens.split(5, dim=1)
        nearest = torch.einsum("bcn,bcm->bnm", query, key).argmax(-1)
        picked = value.gather(2, nearest[:, None].expand(-1, 5, -1))
        torch.testing.assert_close(problem.fused().flatten(2), picked, rtol=1e-6, atol=1e-6)

    def test_equal_scores_and_unit_context_leave_a_relu_network(self, separable: Callable[..., Any]) -> None:
        problem = separable(channels=6, weight_dims=2)
        x, weight, bias, out_weight, out_bias = problem.tensors
        weight[:7], bias[:7] = 0, 1
        hidden = F.conv2d(x, weight[7:, :, None, None], bias[7:]).relu()
        torch.testing.assert_close(
            problem.fused(), F.conv2d(hidden, out_weight[..., None, None], out_bias), rtol=1e-5, atol=1e-5
        )

    def test_the_querys_bias_changes_nothing(self, separable: Callable[..., Any]) -> None:
        problem = separable()
        before = problem.fused()
        problem.tensors[2][0] += 3.0
        torch.testing.assert_close(problem.fused(), before, rtol=1e-5, atol=1e-6)

    def test_unfolded_layout_is_patch_p_by_1(self, op: str, make_problem: Callable[..., Any]) -> None:
        problem = make_problem(op, patch=(2, 3), grid=(3, 4))
        first, *others = problem.args
        unfolded = problem.with_first(reference.unfold(problem.tensors[0], (2, 3)))
        args = ((6, 1),) if op == "separable_attn" else (first, (6, 1), *others[1:])
        result = type(problem)(op, unfolded.tensors, args).fused()
        folded = reference.fold(result, (6, 12), (2, 3))
        torch.testing.assert_close(folded, problem.fused(), rtol=1e-5, atol=1e-6)

    def test_groups_do_not_mix(self, op: str, make_problem: Callable[..., Any]) -> None:
        problem = make_problem(op)
        before = problem.fused().clone()
        problem.tensors[0][0, :, 1::2, ::2] += 1.0
        after = problem.fused()
        changed = (after != before).any(1)
        assert changed[0, 1::2, ::2].all()
        changed[0, 1::2, ::2] = False
        assert not changed.any()

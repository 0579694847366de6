"""Options of the MobileViT blocks: attention units of the v2 paper's comparison, ablation of the v3 paper."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mobilevit_kernels import reference
from mobilevit_kernels.models import (
    LinformerAttention,
    MobileViTBlock,
    MobileViTv3Block,
    MultiHeadAttention,
    SeparableAttention,
    create_model,
)

# The ablation of MobileViTv3: each row adds one change to the one before.
ABLATION = [
    {"fusion_kernel": 3, "fusion_input": "input", "input_residual": False, "local_conv": "full"},
    {"fusion_kernel": 1, "fusion_input": "input", "input_residual": False, "local_conv": "full"},
    {"fusion_kernel": 1, "fusion_input": "local", "input_residual": False, "local_conv": "full"},
    {"fusion_kernel": 1, "fusion_input": "local", "input_residual": True, "local_conv": "full"},
    {"fusion_kernel": 1, "fusion_input": "local", "input_residual": True, "local_conv": "depthwise"},
]
ABLATED = ["mobilevit_xxs", "mobilevitv3_xxs", "mobilevitv3_050"]


@pytest.mark.parametrize("name", ABLATED)
@pytest.mark.parametrize("row", ABLATION)
def test_ablation_rows(name: str, row: dict[str, object], random_model: Callable[..., nn.Module]) -> None:
    """Every row can be built and run; kernel, width and depth of the convolutions are those it asks for."""
    model = random_model(name, num_classes=5, **row)
    assert model(torch.rand(2, 3, 50, 66)).isfinite().all()
    for stage in (2, 3, 4):
        block = model.stages[stage][1]
        fusion = getattr(block, "conv_fusion", block.conv_proj).conv
        channels, dim = block.conv_1x1.in_channels, block.conv_1x1.out_channels
        skip = dim if row["fusion_input"] == "local" else channels
        assert fusion.in_channels == skip + (channels if hasattr(block, "conv_fusion") else dim)
        assert fusion.kernel_size == (row["fusion_kernel"],) * 2
        assert block.conv_kxk.conv.groups == (channels if row["local_conv"] == "depthwise" else 1)


@pytest.mark.parametrize(("name", "defaults"), [("mobilevit_xxs", 0), ("mobilevitv3_xxs", 4)])
def test_defaults_are_rows_of_the_ablation(name: str, defaults: int) -> None:
    """v1 is the first row and v3 the last: state dicts of default models fit, and outputs agree."""
    model, row = create_model(name).eval(), create_model(name, **ABLATION[defaults]).eval()
    row.load_state_dict(model.state_dict())
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model(x), row(x))


@pytest.mark.parametrize("name", ["mobilevitv3_xxs", "mobilevitv3_050"])
def test_input_residual_adds_the_input(name: str, random_model: Callable[..., nn.Module]) -> None:
    with_residual = random_model(name).stages[2][1]
    without = random_model(name, input_residual=False).stages[2][1]
    without.load_state_dict(with_residual.state_dict())
    x = torch.rand(1, with_residual.conv_1x1.in_channels, 6, 6)
    torch.testing.assert_close(with_residual(x), without(x) + x)


@pytest.mark.parametrize("row", ABLATION)
def test_v1_and_v3_blocks_differ_in_defaults_only(row: dict[str, object], randomize: Callable) -> None:
    v1, v3 = randomize(MobileViTBlock(8, 16, 1, **row)), randomize(MobileViTv3Block(8, 16, 1, **row))
    v3.load_state_dict(v1.state_dict())
    x = torch.rand(2, 8, 5, 6)
    assert torch.equal(v1(x), v3(x))


@pytest.mark.parametrize(
    ("option", "value"),
    [("attention", "flash"), ("fusion_kernel", 5), ("fusion_input", "both"), ("local_conv", "none")],
)
def test_unknown_choice(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{option}: expected one of .*, got {value!r}"):
        create_model("mobilevitv3_xxs", **{option: value})


@pytest.mark.parametrize(
    ("name", "option"),
    [("mobilevitv2_050", "attention"), ("mobilevitv2_050", "fusion_kernel"), ("mobilevit_s", "no_such")],
)
def test_option_of_another_generation(name: str, option: str) -> None:
    with pytest.raises(
        TypeError, match=f"unknown argument {option}; the MobileViT.*Block of this model takes"
    ):
        create_model(name, **{option: 1})


@pytest.mark.parametrize("attention", ["mha", "linformer", "separable"])
def test_attention_units(attention: str, random_model: Callable[..., nn.Module], backend: str) -> None:
    kinds = {"mha": MultiHeadAttention, "linformer": LinformerAttention, "separable": SeparableAttention}
    model = random_model("mobilevit_xxs", num_classes=5, attention=attention, img_size=72)
    layers = [layer.attn for stage in (2, 3, 4) for layer in model.stages[stage][1].transformer]
    assert len(layers) == 2 + 4 + 3
    assert all(type(layer) is kinds[attention] for layer in layers)
    model.train()(torch.rand(2, 3, 66, 70)).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_linformer_of_identity_projections_is_attention(randomize: Callable, backend: str) -> None:
    """Projecting N tokens to themselves changes nothing."""
    linformer = randomize(LinformerAttention(12, max_tokens=15, num_heads=3).double())
    attention = MultiHeadAttention(12, num_heads=3).double()
    state = linformer.state_dict()
    nn.init.eye_(linformer.key_proj)
    nn.init.eye_(linformer.value_proj)
    attention.load_state_dict({k: v for k, v in state.items() if k not in ("key_proj", "value_proj")})
    for height, width in ((6, 10), (10, 6)):
        x = torch.rand(2, 12, height, width, dtype=torch.float64)
        torch.testing.assert_close(linformer(x), attention(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(8, 10), (4, 4)])
def test_linformer_restated(height: int, width: int, randomize: Callable) -> None:
    """Keys and values projected along the tokens, group by group and head by head; a slice for small maps."""
    layer = randomize(LinformerAttention(6, max_tokens=20, num_heads=2, max_projected=7).double())
    assert layer.key_proj.shape == (7, 20)
    x = torch.rand(2, 6, height, width, dtype=torch.float64)
    out = torch.empty_like(x)
    for i, j in itertools.product(range(2), range(2)):
        tokens = x[:, :, i::2, j::2].flatten(2).mT  # [B, N, C]
        count = tokens.shape[1]
        query, key, value = F.linear(tokens, layer.qkv.weight, layer.qkv.bias).chunk(3, -1)
        heads = []
        for head in (slice(0, 3), slice(3, 6)):
            k = layer.key_proj[:, :count] @ key[..., head]
            v = layer.value_proj[:, :count] @ value[..., head]
            heads.append((query[..., head] @ k.mT / 3**0.5).softmax(-1) @ v)
        merged = F.linear(torch.cat(heads, -1), layer.proj.weight, layer.proj.bias)
        out[:, :, i::2, j::2] = merged.mT.reshape(2, 6, height // 2, width // 2)
    torch.testing.assert_close(layer(x), out, rtol=1e-9, atol=1e-9)


def test_linformer_calls_projections_that_are_watched(randomize: Callable) -> None:
    """The same output, and a hook that changes the projected tokens has its effect."""
    layer = randomize(LinformerAttention(6, max_tokens=20, num_heads=2, max_projected=7).double())
    x = torch.randn(2, 6, 8, 10, dtype=torch.float64)
    expected, seen = layer(x), []
    handle = layer.qkv.register_forward_hook(lambda module, args, out: seen.append(out.shape))
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)
    assert seen == [(8, 20, 18)]
    handle.remove()
    layer.qkv.register_forward_hook(lambda module, args, out: 2 * out)
    assert (layer(x) - expected).abs().max() > 1e-2


def test_linformer_sizes_follow_the_image() -> None:
    """256 tokens, then a quarter per stage; never more than 256 projected tokens."""
    shapes = {}
    for img_size in (256, (512, 256), 97):
        with torch.device("meta"):
            model = create_model("mobilevit_xxs", attention="linformer", img_size=img_size)
        shapes[img_size] = [
            tuple(model.stages[stage][1].transformer[0].attn.key_proj.shape) for stage in (2, 3, 4)
        ]
    assert shapes[256] == [(256, 256), (64, 64), (16, 16)]
    assert shapes[(512, 256)] == [(256, 512), (128, 128), (32, 32)]
    assert shapes[97] == [(49, 49), (16, 16), (4, 4)]


def test_linformer_takes_smaller_and_refuses_larger_images(random_model: Callable[..., nn.Module]) -> None:
    model = random_model("mobilevit_xxs", attention="linformer", img_size=97, num_classes=3)
    assert model(torch.rand(1, 3, 97, 97)).isfinite().all()
    assert model(torch.rand(1, 3, 40, 64)).isfinite().all()
    with pytest.raises(ValueError, match="64 tokens per pixel position.* at most 49; .*larger img_size"):
        model(torch.rand(1, 3, 128, 128))


def test_separable_unit_in_the_v1_layer(randomize: Callable, backend: str) -> None:
    """The unit reads the normalized tokens as a map and is the separable attention of the reference."""
    layer = randomize(MobileViTBlock(8, 16, 1, attention="separable")).transformer[0]
    tokens = torch.rand(2, 6, 4, 16)
    normalized = layer.norm1(tokens).permute(0, 3, 1, 2)
    attn = layer.attn
    projections = (attn.qkv_proj.weight, attn.qkv_proj.bias, attn.out_proj.weight, attn.out_proj.bias)
    attended = reference.separable_attn(normalized, *projections).permute(0, 2, 3, 1)
    expected = tokens + attended
    torch.testing.assert_close(
        layer(tokens), expected + layer.mlp(layer.norm2(expected)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mobilevit_xxs", {"num_heads": 1, "patch_size": (4, 2)}),
        ("mobilevit_xxs", {"num_heads": 8, "patch_size": 3}),
        ("mobilevitv2_050", {"patch_size": (3, 2)}),
    ],
)
def test_heads_and_patches(
    name: str, kwargs: dict, random_model: Callable[..., nn.Module], backend: str
) -> None:
    model = random_model(name, num_classes=5, **kwargs)
    assert model(torch.rand(1, 3, 70, 50)).isfinite().all()


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="num_heads: expected a positive divisor of dim=64, got 5"):
        create_model("mobilevit_xxs", num_heads=5)


def _dropouts(model: nn.Module) -> Tensor:
    return torch.tensor([module.p for module in model.modules() if isinstance(module, nn.Dropout)])


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050", "mobilevitv3_xxs", "mobilevitv3_050"])
def test_dropout(name: str, random_model: Callable[..., nn.Module]) -> None:
    """0 by default; with a rate, two per transformer layer act in training and none in evaluation."""
    assert not _dropouts(create_model(name)).any()
    model = random_model(name, num_classes=4, transformer_dropout=0.3, drop_rate=0.2)
    rates = _dropouts(model)
    assert (rates == 0.3).sum() == 2 * (2 + 4 + 3)
    assert (rates == 0.2).sum() == 1
    tokens = model.stages[2][1].transformer
    x = torch.rand(1, model.stages[2][1].conv_1x1.out_channels, 8, 8)
    x = x.permute(0, 2, 3, 1) if name in ("mobilevit_xxs", "mobilevitv3_xxs") else x
    assert torch.equal(tokens(x), tokens(x))
    tokens.train()
    assert not torch.equal(tokens(x), tokens(x))

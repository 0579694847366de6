"""Finds the transformer of every MobileViT block and replaces it, with the norm after it, by one op."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mobilevit_kernels.models.fused_layers import is_silu
from mobilevit_kernels.models.optimize.folding import qualified_name
from mobilevit_kernels.models.optimize.packed import PackedOp
from mobilevit_kernels.models.optimize.predicates import does_nothing, is_observed, weight_and_bias
from mobilevit_kernels.models.optimize.transformer import FusedSeparableTransformer, FusedTransformer
from mobilevit_kernels.ops.packing import LayerParameters

_PATHS = "mobilevit_kernels.models"
_TIMM = f"{_PATHS}.accelerate.timm"
_HF = f"{_PATHS}.accelerate.huggingface"
# The names of the transformer and of the norm after it, by class of block.
BLOCKS = {
    f"{_PATHS}.block_v1.MobileViTBlock": ("transformer", "norm"),
    f"{_PATHS}.block_v3.MobileViTv3Block": ("transformer", "norm"),
    f"{_PATHS}.block_v2.MobileViTv2Block": ("transformer", "norm"),
    f"{_PATHS}.block_v3.MobileViTv3SeparableBlock": ("transformer", "norm"),
    f"{_TIMM}.AcceleratedMobileVitBlock": ("transformer", "norm"),
    f"{_TIMM}.AcceleratedMobileVitV2Block": ("transformer", "norm"),
    f"{_HF}.AcceleratedMobileViTLayer": ("transformer", "layernorm"),
    f"{_HF}.AcceleratedMobileViTV2Layer": ("transformer", "layernorm"),
}


class LayerNames(NamedTuple):
    """Where the parts of a transformer layer are.

    Attributes:
        attention: the attention layer.
        heads: attribute of the attention layer with the number of heads; None for separable attention.
        qkv: the projection(s) into the attention, in order.
    """

    attention: str
    heads: str | None
    norm1: str
    qkv: tuple[str, ...]
    out: str
    norm2: str
    fc1: str
    act: str
    fc2: str

    def parts(self) -> tuple[str, ...]:
        """The submodules whose parameters the op takes, in its order."""
        return (self.norm1, *self.qkv, self.out, self.norm2, self.fc1, self.fc2)


_MHA = LayerNames(
    "attn", "num_heads", "norm1", ("attn.qkv",), "attn.proj", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2"
)
_SEPARABLE = LayerNames(
    "attn", None, "norm1", ("attn.qkv_proj",), "attn.out_proj", "norm2", "mlp.fc1", "mlp.act", "mlp.fc2"
)
_HF_MHA = LayerNames(
    "attention.attention",
    "num_attention_heads",
    "layernorm_before",
    ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attention.output.dense",
    "layernorm_after",
    "intermediate.dense",
    "intermediate.intermediate_act_fn",
    "output.dense",
)
_HF_SEPARABLE = LayerNames(
    "attention",
    None,
    "layernorm_before",
    ("attention.qkv_proj.convolution",),
    "attention.out_proj.convolution",
    "layernorm_after",
    "ffn.conv1.convolution",
    "ffn.conv1.activation",
    "ffn.conv2.convolution",
)
# By the class of a layer and of its attention: others are not what the ops compute.
_LAYERS = {
    (f"{_PATHS}.transformer.TransformerLayer", f"{_PATHS}.attention.MultiHeadAttention"): _MHA,
    (f"{_PATHS}.transformer.SeparableTransformerLayer", f"{_PATHS}.attention.SeparableAttention"): _SEPARABLE,
    ("timm.models.vision_transformer.Block", f"{_TIMM}.AcceleratedAttention"): _MHA,
    ("timm.models.mobilevit.LinearTransformerBlock", f"{_TIMM}.AcceleratedLinearSelfAttention"): _SEPARABLE,
    (
        "transformers.models.mobilevit.modeling_mobilevit.MobileViTTransformerLayer",
        f"{_HF}.AcceleratedMobileViTSelfAttention",
    ): _HF_MHA,
    (
        "transformers.models.mobilevitv2.modeling_mobilevitv2.MobileViTV2TransformerLayer",
        f"{_HF}.AcceleratedMobileViTV2LinearSelfAttention",
    ): _HF_SEPARABLE,
}


def fuse_transformers(model: nn.Module, dtype: torch.dtype = torch.float32) -> int:
    """Replaces the transformer of every MobileViT block, and the norm after it, by one op, in place.

    A transformer with another attention (Linformer), another activation, unequal epsilons, hooks or wrapped layers
    stays as it is.

    Args:
        model: in evaluation mode.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.

    Returns:
        How many were replaced.
    """
    fused = 0
    for block in list(model.modules()):
        names = BLOCKS.get(qualified_name(block))
        if names is None:
            continue
        transformer, norm = (cast("Any", block.get_submodule(name)) for name in names)
        if isinstance(transformer, PackedOp):
            continue
        replacement = fuse(list(getattr(transformer, "layer", transformer)), norm, dtype)
        if replacement is not None:
            setattr(block, names[0], replacement)
            setattr(block, names[1], nn.Identity())
            fused += 1
    return fused


def fuse(
    layers: Sequence[nn.Module], norm: nn.Module, dtype: torch.dtype = torch.float32
) -> nn.Module | None:
    """One module that computes what ``layers`` and ``norm`` compute one after another, or None.

    Args:
        layers: transformer layers of this package, timm or transformers (the last two accelerated), all alike.
        norm: LayerNorm or GroupNorm after the last.
        dtype: of the products: ``torch.float32`` or ``torch.bfloat16``.
    """
    found = [_names_of(layer) for layer in layers]
    names = found[0] if found else None
    if names is None or any(other != names for other in found):
        return None
    separable = names.heads is None
    norms: list[Any] = [
        norm,
        *(layer.get_submodule(name) for layer in layers for name in (names.norm1, names.norm2)),
    ]
    if not all(_is_plain_norm(item, separable) for item in norms) or len({item.eps for item in norms}) != 1:
        return None
    if not all(_is_plain_layer(layer, names) for layer in layers):
        return None
    parameters = [_parameters(layer, names) for layer in layers]
    attention: Any = layers[0].get_submodule(names.attention)
    last, eps = weight_and_bias(norm), float(norms[0].eps)
    if names.heads is None:
        return FusedSeparableTransformer(parameters, *last, attention.patch_size, eps, dtype)
    return FusedTransformer(
        parameters, *last, getattr(attention, names.heads), attention.patch_size, eps, dtype
    )


def _names_of(layer: nn.Module) -> LayerNames | None:
    for (layer_class, attention_class), names in _LAYERS.items():
        if qualified_name(layer) == layer_class:
            return names if qualified_name(layer.get_submodule(names.attention)) == attention_class else None
    return None


def _is_plain_norm(norm: Any, separable: bool) -> bool:
    if is_observed(norm) or norm.weight is None:
        return False
    return (
        isinstance(norm, nn.GroupNorm) and norm.num_groups == 1 if separable else type(norm) is nn.LayerNorm
    )


def _is_plain_layer(layer: nn.Module, names: LayerNames) -> bool:
    """Whether a layer has nothing but what the op computes."""
    known = {layer.get_submodule(name) for name in (*names.parts(), names.act)}
    for module in layer.modules():
        if is_observed(module):
            return False
        leaf = next(module.children(), None) is None
        if leaf and module not in known and not does_nothing(module):
            return False
    linears: list[Any] = [layer.get_submodule(name) for name in (*names.qkv, names.out, names.fc1, names.fc2)]
    if not all(type(linear) in (nn.Linear, nn.Conv2d) for linear in linears):
        return False
    attention: Any = layer.get_submodule(names.attention)
    scale = getattr(attention, "scale", None)
    head_dim = linears[0].weight.shape[1] // (getattr(attention, names.heads) if names.heads else 1)
    return is_silu(layer.get_submodule(names.act)) and (scale is None or scale == head_dim**-0.5)


def _parameters(layer: nn.Module, names: LayerNames) -> LayerParameters:
    groups = [(name,) for name in names.parts() if name not in names.qkv]
    groups.insert(1, names.qkv)  # type: ignore[arg-type]
    return [
        parameter for group in groups for parameter in _joined([layer.get_submodule(name) for name in group])
    ]


def _joined(layers: Iterable[nn.Module]) -> tuple[Tensor, Tensor]:
    """Weight and bias of some layers as one, row after row."""
    weights, biases = zip(*(weight_and_bias(layer) for layer in layers), strict=True)
    return torch.cat(weights), torch.cat(biases)

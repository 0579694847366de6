"""Names of every layer in the three published namings, as one table for each generation.

A row names one module in timm's, cvnets' and transformers' state dicts. Placeholders:

* ``{c}``: a stage of convolutions only, ``{t}``: a stage with a MobileViT block; timm and transformers count stages
  from 0, cvnets from 1;
* ``{j}``: position of an inverted residual or of a transformer layer, counted from 0 by all three;
* ``{depth}``: number of transformer layers of the stage (cvnets numbers the norm that follows them as one more).

The official MobileViTv3 code uses cvnets' names. MobileViTv3 on v1 has the modules of v1, on v2 those of v2.
"""

from typing import Literal, NamedTuple

Format = Literal["timm", "cvnets", "hf"]
Generation = Literal["mha", "separable"]

FORMATS: tuple[Format, ...] = ("timm", "cvnets", "hf")
GENERATIONS: tuple[Generation, ...] = ("mha", "separable")


class Names(NamedTuple):
    """One module (or its name's template) in each naming."""

    timm: str
    cvnets: str
    hf: str


_CONV = Names(".conv", ".block.conv", ".convolution")
_NORM = Names(".bn", ".block.norm", ".normalization")
_BARE_CONV = Names("", ".block.conv", ".convolution")


def _join(names: Names, suffix: Names) -> Names:
    return Names(*(name + end for name, end in zip(names, suffix, strict=True)))


def _conv_norm(timm: str, cvnets: str, hf: str) -> list[Names]:
    """Convolution and BatchNorm."""
    names = Names(timm, cvnets, hf)
    return [_join(names, _CONV), _join(names, _NORM)]


def _conv(timm: str, cvnets: str, hf: str) -> Names:
    """Convolution that timm keeps bare and the others wrap."""
    return _join(Names(timm, cvnets, hf), _BARE_CONV)


def _inverted_residual(timm: str, cvnets: str, hf: str) -> list[Names]:
    return [
        *_conv_norm(f"{timm}.conv1_1x1", f"{cvnets}.block.exp_1x1", f"{hf}.expand_1x1"),
        *_conv_norm(f"{timm}.conv2_kxk", f"{cvnets}.block.conv_3x3", f"{hf}.conv_3x3"),
        *_conv_norm(f"{timm}.conv3_1x1", f"{cvnets}.block.red_1x1", f"{hf}.reduce_1x1"),
    ]


_BLOCK = Names("stages.{t}.1", "layer_{t}.1", "encoder.layer.{t}")
_LAYER = Names(
    "stages.{t}.1.transformer.{j}", "layer_{t}.1.global_rep.{j}", "encoder.layer.{t}.transformer.layer.{j}"
)


def _in_block(timm: str, cvnets: str, hf: str) -> tuple[str, str, str]:
    return f"{_BLOCK.timm}.{timm}", f"{_BLOCK.cvnets}.{cvnets}", f"{_BLOCK.hf}.{hf}"


def _in_layer(timm: str, cvnets: str, hf: str) -> tuple[str, str, str]:
    return f"{_LAYER.timm}.{timm}", f"{_LAYER.cvnets}.{cvnets}", f"{_LAYER.hf}.{hf}"


_TRUNK = [
    *_conv_norm("stem", "conv_1", "conv_stem"),
    *_inverted_residual("stages.{c}.{j}", "layer_{c}.{j}", "encoder.layer.{c}.layer.{j}"),
    *_inverted_residual("stages.{t}.0", "layer_{t}.0", "encoder.layer.{t}.downsampling_layer"),
    Names(*_in_block("norm", "global_rep.{depth}", "layernorm")),
    *_conv_norm(*_in_block("conv_proj", "conv_proj", "conv_projection")),
]

# transformers stores query, key and value apart; "attention.attention.qkv" stands for the three joined.
_MHA = [
    *_conv_norm(*_in_block("conv_kxk", "local_rep.conv_3x3", "conv_kxk")),
    _conv(*_in_block("conv_1x1", "local_rep.conv_1x1", "conv_1x1")),
    Names(*_in_layer("norm1", "pre_norm_mha.0", "layernorm_before")),
    Names(*_in_layer("attn.qkv", "pre_norm_mha.1.qkv_proj", "attention.attention.qkv")),
    Names(*_in_layer("attn.proj", "pre_norm_mha.1.out_proj", "attention.output.dense")),
    Names(*_in_layer("norm2", "pre_norm_ffn.0", "layernorm_after")),
    Names(*_in_layer("mlp.fc1", "pre_norm_ffn.1", "intermediate.dense")),
    Names(*_in_layer("mlp.fc2", "pre_norm_ffn.4", "output.dense")),
    *_conv_norm(*_in_block("conv_fusion", "fusion", "fusion")),
    *_conv_norm("final_conv", "conv_1x1_exp", "conv_1x1_exp"),
    Names("head.fc", "classifier.fc", "classifier"),
]

_SEPARABLE = [
    *_conv_norm(*_in_block("conv_kxk", "local_rep.0", "conv_kxk")),
    _conv(*_in_block("conv_1x1", "local_rep.1", "conv_1x1")),
    Names(*_in_layer("norm1", "pre_norm_attn.0", "layernorm_before")),
    _conv(*_in_layer("attn.qkv_proj", "pre_norm_attn.1.qkv_proj", "attention.qkv_proj")),
    _conv(*_in_layer("attn.out_proj", "pre_norm_attn.1.out_proj", "attention.out_proj")),
    Names(*_in_layer("norm2", "pre_norm_ffn.0", "layernorm_after")),
    _conv(*_in_layer("mlp.fc1", "pre_norm_ffn.1", "ffn.conv1")),
    _conv(*_in_layer("mlp.fc2", "pre_norm_ffn.3", "ffn.conv2")),
    Names("head.fc", "classifier.1", "classifier"),
]

TABLES: dict[Generation, tuple[Names, ...]] = {
    "mha": (*_TRUNK, *_MHA),
    "separable": (*_TRUNK, *_SEPARABLE),
}

HF_PREFIXES: dict[Generation, str] = {"mha": "mobilevit.", "separable": "mobilevitv2."}
"""Prefix of the backbone in a transformers model with a head; the classifier has none."""

PARAMETERS = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})

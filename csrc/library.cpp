// The schemas of every op, once. Kernels register themselves beside their code (csrc/<backend>/<op>.cpp).
#include <torch/library.h>

TORCH_LIBRARY(mobilevit, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};

  m.def("unfold_attn_fold(Tensor qkv, int num_heads, int[2] patch_size, float? scale=None) -> Tensor", tags);
  m.def(
      "unfold_attn_fold_forward(Tensor qkv, int num_heads, int[2] patch_size, float? scale=None) "
      "-> (Tensor out, Tensor logsumexp)",
      tags);
  m.def(
      "unfold_attn_fold_backward(Tensor grad_out, Tensor qkv, Tensor out, Tensor logsumexp, int num_heads, "
      "int[2] patch_size, float? scale=None) -> Tensor",
      tags);

  m.def(
      "separable_attn(Tensor x, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight, Tensor? out_bias, "
      "int[2] patch_size) -> Tensor",
      tags);
  m.def(
      "separable_attn_forward(Tensor x, Tensor qkv_weight, Tensor? qkv_bias, Tensor out_weight, "
      "Tensor? out_bias, int[2] patch_size) -> (Tensor out, Tensor scores, Tensor pooled, Tensor context)",
      tags);
  m.def(
      "separable_attn_backward(Tensor grad_out, Tensor x, Tensor qkv_weight, Tensor? qkv_bias, "
      "Tensor out_weight, Tensor scores, Tensor pooled, Tensor context, int[2] patch_size, "
      "bool[2] output_mask) -> (Tensor grad_x, Tensor grad_qkv_weight, Tensor grad_qkv_bias, "
      "Tensor grad_out_weight, Tensor grad_out_bias)",
      tags);

  // Normalisation by the statistics of the batch and its activation, for training on the CPU.
  m.def(
      "batch_norm(Tensor x, Tensor weight, Tensor bias, float eps, bool silu) -> (Tensor out, Tensor mean, Tensor var)",
      tags);
  m.def(
      "batch_norm_backward(Tensor grad_out, Tensor x, Tensor weight, Tensor bias, Tensor mean, Tensor var, float eps, "
      "bool silu) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
      tags);

  // Convolutions of training on the CPU.
  m.def("pointwise_conv2d(Tensor x, Tensor weight, Tensor? bias=None, bool silu_input=False) -> Tensor", tags);
  m.def(
      "pointwise_conv2d_backward(Tensor grad_out, Tensor x, Tensor weight, bool silu_input, bool[3] output_mask) "
      "-> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
      tags);
  m.def(
      "batch_norm_conv2d(Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, float eps, bool silu, "
      "int stride=1, int dilation=1) -> (Tensor out, Tensor mean, Tensor var)",
      tags);
  m.def(
      "batch_norm_conv2d_backward(Tensor grad_out, Tensor x, Tensor norm_weight, Tensor norm_bias, Tensor weight, "
      "Tensor mean, Tensor var, float eps, bool silu, int stride, int dilation) "
      "-> (Tensor grad_x, Tensor grad_norm_weight, Tensor grad_norm_bias, Tensor grad_weight)",
      tags);
  m.def("depthwise_conv2d(Tensor x, Tensor weight, int stride=1, int dilation=1) -> Tensor", tags);
  m.def(
      "depthwise_conv2d_backward(Tensor grad_out, Tensor x, Tensor weight, int stride, int dilation, "
      "bool[2] output_mask) -> (Tensor grad_x, Tensor grad_weight)",
      tags);

  // Whole layers, for inference: the projections, norms and residuals around the two ops above.
  m.def(
      "transformer_layer(Tensor x, Tensor norm1_weight, Tensor norm1_bias, Tensor qkv_weight, Tensor qkv_bias, "
      "Tensor proj_weight, Tensor proj_bias, Tensor norm2_weight, Tensor norm2_bias, Tensor fc1_weight, "
      "Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias, int num_heads, int[2] patch_size, float eps) -> Tensor",
      tags);
  m.def(
      "separable_transformer_layer(Tensor x, Tensor norm1_weight, Tensor norm1_bias, Tensor qkv_weight, "
      "Tensor qkv_bias, Tensor out_weight, Tensor out_bias, Tensor norm2_weight, Tensor norm2_bias, "
      "Tensor fc1_weight, Tensor fc1_bias, Tensor fc2_weight, Tensor fc2_bias, int[2] patch_size, float eps) "
      "-> Tensor",
      tags);

  // All layers between unfold and fold and the norm after them, for inference on the CPU; packed holds the parameters
  // (mobilevit_kernels/ops/packing.py).
  m.def(
      "transformer(Tensor x, Tensor packed, int num_layers, int num_heads, int hidden_dim, int[2] patch_size, "
      "float eps) -> Tensor",
      tags);
  m.def(
      "separable_transformer(Tensor x, Tensor packed, int num_layers, int hidden_dim, int[2] patch_size, float eps) "
      "-> Tensor",
      tags);

  // Convolutions around the transformers, for inference on the CPU.
  m.def(
      "convolution(Tensor x, Tensor packed, int out_channels, int kernel_size, int stride, int padding, int dilation, "
      "bool silu, Tensor? beside=None, ScalarType? out_dtype=None) -> Tensor",
      tags);
  m.def(
      "winograd_convolution(Tensor x, Tensor packed, int out_channels, bool silu, Tensor? beside=None) -> Tensor",
      tags);
  m.def("depthwise_convolution(Tensor x, Tensor packed, int stride, int dilation, bool silu) -> Tensor", tags);
  m.def(
      "inverted_residual(Tensor x, Tensor packed, int hidden_dim, int out_channels, int stride, int dilation, "
      "bool residual) -> Tensor",
      tags);

  // The classifier after them.
  m.def("pooled_linear(Tensor x, Tensor packed, int out_features) -> Tensor", tags);
}

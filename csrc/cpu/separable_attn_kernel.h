// What the ATen side hands to the kernels of separable_attn. Maps, weights and biases are in the dtype of x; statistics
// and gradients of the parameters are in the accumulation type. All but the maps are dense.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/token_grid.h"

namespace mobilevit::cpu {

struct SeparableShape {
  TokenGrid grid;
  int64_t channels;
  at::ScalarType dtype;

  int64_t groups() const { return grid.batch * grid.positions(); }
};

struct SeparableWeights {
  const void *qkv_weight, *qkv_bias;  // [1 + 2C, C], [1 + 2C] or null, rows query | key | value
  const void *out_weight, *out_bias;  // [C, C], [C] or null; the backward needs no out_bias
};

struct SeparableForward {
  SeparableShape shape;
  SeparableWeights weights;
  MapView x, out;
  void *scores, *pooled, *context;  // [B, P, N], [B, P, C], [B, P, C]

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

struct SeparableBackward {
  SeparableShape shape;
  SeparableWeights weights;
  MapView grad_out, x, grad_x;
  const void *scores, *pooled, *context;
  bool want_grad_x, want_grad_weights;
  void *grad_qkv_weight, *grad_qkv_bias, *grad_out_weight, *grad_out_bias;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(separable_attn_forward, SeparableForward)
MOBILEVIT_DECLARE_KERNEL(separable_attn_backward, SeparableBackward)

}  // namespace mobilevit::cpu

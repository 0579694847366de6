// What the ATen side hands to the kernels of batch_norm. Maps are dense NHWC: rows of `channels` values; vectors are in
// the accumulation type.
#pragma once

#include "cpu/dispatch.h"

namespace mobilevit::cpu {

struct BatchNormShape {
  int64_t rows, channels;
  double eps;
  bool silu;
  at::ScalarType dtype;
};

// out: null where the statistics alone are wanted, which need no weight and bias.
struct BatchNorm {
  BatchNormShape shape;
  const void *x, *weight, *bias;
  void *out, *mean, *var;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

// grad_x may be where grad_out is. sums: of grad_out and of grad_out (x - mean) for each channel, [2, C], where
// somebody has them already and there is no SiLU, or null.
struct BatchNormBackward {
  BatchNormShape shape;
  const void *grad_out, *x, *weight, *bias, *mean, *var;
  void *grad_x, *grad_weight, *grad_bias;
  const double* sums = nullptr;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(batch_norm_forward, BatchNorm)
MOBILEVIT_DECLARE_KERNEL(batch_norm_backward, BatchNormBackward)

}  // namespace mobilevit::cpu

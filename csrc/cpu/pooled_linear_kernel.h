// What the ATen side hands to the kernel of pooled_linear.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"
#include "cpu/token_grid.h"

namespace mobilevit::cpu {

// The output is dense, [batch, out_features].
struct PooledLinear {
  int64_t batch, channels, height, width, out_features;
  MapView x;
  void* out;
  at::ScalarType dtype;
  const void* packed;
  at::ScalarType packed_dtype;  // float32, or bfloat16 for products on the matrix units

  bool in_bfloat16() const { return packed_dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(pooled_linear, PooledLinear)

}  // namespace mobilevit::cpu

// What the ATen side hands to the kernels of whole transformers.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"
#include "cpu/token_grid.h"

namespace mobilevit::cpu {

struct TransformerShape {
  TokenGrid grid;
  int64_t channels, hidden, heads;  // heads: 1 for the separable transformer
  double eps;
  at::ScalarType dtype;

  int64_t pixels() const { return grid.height * grid.width; }
};

struct Transformer {
  TransformerShape shape;
  MapView x, out;
  const void* packed;
  at::ScalarType packed_dtype;  // float32, or bfloat16 for products on the matrix units
  int64_t num_layers;

  bool in_bfloat16() const { return packed_dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(transformer, Transformer)
MOBILEVIT_DECLARE_KERNEL(separable_transformer, Transformer)

}  // namespace mobilevit::cpu

// What the ATen side hands to the kernels of whole transformers.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"
#include "cpu/token_grid.h"

#include <vector>

namespace mobilevit::cpu {

struct TransformerShape {
  TokenGrid grid;
  int64_t channels, hidden, heads;  // heads: 1 for the separable transformer
  double eps;
  at::ScalarType dtype;

  int64_t pixels() const { return grid.height * grid.width; }
};

template <typename LayerWeights>
struct TransformerArguments {
  TransformerShape shape;
  MapView x, out;
  std::vector<LayerWeights> layers;
  NormWeights norm;
};

using Transformer = TransformerArguments<TransformerLayerWeights>;
using SeparableTransformer = TransformerArguments<SeparableLayerWeights>;

MOBILEVIT_DECLARE_KERNEL(transformer, Transformer)
MOBILEVIT_DECLARE_KERNEL(separable_transformer, SeparableTransformer)

}  // namespace mobilevit::cpu

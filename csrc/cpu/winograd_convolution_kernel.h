// What the ATen side hands to the kernel of winograd_convolution.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"
#include "cpu/token_grid.h"

#include <array>

namespace mobilevit::cpu {

// A 3x3 kernel, stride 1, padding 1: outputs in tiles of 2 x 2, each from 4 x 4 pixels.
struct WinogradShape {
  int64_t batch, height, width, in_channels, out_channels;

  static constexpr int kPlanes = 16;

  int64_t tile_columns() const { return (width + 1) / 2; }
  int64_t tiles_of_a_sample() const { return (height + 1) / 2 * tile_columns(); }
};

// Channels are adjacent. Those of `beside`, if there are more than x has, follow them. The output is dense NHWC.
struct WinogradConvolution {
  WinogradShape shape;
  MapView x, beside;
  int64_t x_channels;
  void* out;
  at::ScalarType dtype;
  const float* packed;
  bool silu;  // activates the result

  bool in_bfloat16() const { return false; }
};

// The packed parameters, as mobilevit_kernels/ops/packing.py writes them: a matrix for each of the 16 products, and the
// bias.
struct WinogradWeights {
  std::array<const float*, WinogradShape::kPlanes> planes;
  const float* bias;
  int64_t total;  // elements

  WinogradWeights(const float* packed, const WinogradShape& shape) {
    PackedReader<float> reader(packed);
    for (const float*& plane : planes) plane = reader.matrix(shape.out_channels, shape.in_channels);
    bias = reader.vector(shape.out_channels);
    total = reader.total();
  }
};

MOBILEVIT_DECLARE_KERNEL(winograd_convolution, WinogradConvolution)

}  // namespace mobilevit::cpu

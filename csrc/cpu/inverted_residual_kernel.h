// What the ATen side hands to the kernel of inverted_residual.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"

namespace mobilevit::cpu {

struct InvertedResidualShape {
  int64_t batch, height, width, in_channels, hidden, out_channels, stride, dilation;

  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

// Maps are dense NHWC.
struct InvertedResidual {
  InvertedResidualShape shape;
  const void* x;
  void* out;
  at::ScalarType dtype;
  const void* packed;
  at::ScalarType packed_dtype;  // float32, or bfloat16 for products on the matrix units
  bool residual;                // adds x to the result

  bool in_bfloat16() const { return packed_dtype == at::kBFloat16; }
};

// The packed parameters, as mobilevit_kernels/ops/packing.py writes them.
template <typename W>
struct InvertedResidualWeights {
  PackedLinear<W> expand;
  const float *taps, *taps_bias;  // [9, round_up(hidden, kPackedColumns)], and one such row
  PackedLinear<W> project;
  int64_t total;  // elements

  InvertedResidualWeights(const void* packed, const InvertedResidualShape& shape) {
    PackedReader<W> reader(static_cast<const W*>(packed));
    expand = reader.linear(shape.hidden, shape.in_channels);
    taps = reader.vector(9 * round_up(shape.hidden, kPackedColumns));
    taps_bias = reader.vector(shape.hidden);
    project = reader.linear(shape.out_channels, shape.hidden);
    total = reader.total();
  }
};

MOBILEVIT_DECLARE_KERNEL(inverted_residual, InvertedResidual)

}  // namespace mobilevit::cpu

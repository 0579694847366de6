// What the ATen side hands to the kernel of depthwise_convolution.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"

namespace mobilevit::cpu {

// A 3x3 kernel; padding with zeros, as wide as the dilation.
struct DepthwiseConvolutionShape {
  int64_t batch, height, width, channels, stride, dilation;

  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

// Maps are dense NHWC.
struct DepthwiseConvolution {
  DepthwiseConvolutionShape shape;
  const void* x;
  void* out;
  at::ScalarType dtype;
  const float* packed;
  bool silu;  // activates the result

  bool in_bfloat16() const { return dtype == at::kBFloat16; }
};

// The packed parameters, as mobilevit_kernels/ops/packing.py writes them.
struct DepthwiseConvolutionWeights {
  const float *taps, *bias;  // [9, round_up(channels, kPackedColumns)], and one such row
  int64_t total;             // elements

  DepthwiseConvolutionWeights(const float* packed, int64_t channels) {
    PackedReader<float> reader(packed);
    taps = reader.vector(9 * round_up(channels, kPackedColumns));
    bias = reader.vector(channels);
    total = reader.total();
  }
};

MOBILEVIT_DECLARE_KERNEL(depthwise_convolution, DepthwiseConvolution)

}  // namespace mobilevit::cpu

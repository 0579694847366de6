// What the ATen side hands to the kernel of convolution.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/packed_weights.h"

namespace mobilevit::cpu {

// A square kernel; padding with zeros on all sides.
struct ConvolutionShape {
  int64_t batch, height, width, in_channels, out_channels, kernel_size, stride, padding, dilation;

  int64_t out_height() const { return out_side(height); }
  int64_t out_width() const { return out_side(width); }
  int64_t out_side(int64_t side) const { return (side + 2 * padding - dilation * (kernel_size - 1) - 1) / stride + 1; }
};

// A map [B, channels, H, W]; strides in elements.
struct ConvolutionInput {
  const void* data;
  int64_t channels, batch_stride, channel_stride, row_stride, column_stride;
};

// The channels of `beside`, which may have none, follow those of x. The output is dense NHWC; so are both under a
// kernel of one pixel.
struct Convolution {
  ConvolutionShape shape;
  ConvolutionInput x, beside;
  void* out;
  at::ScalarType dtype, out_dtype;  // of the maps read, and of the output
  const void* packed;
  at::ScalarType packed_dtype;  // float32, or bfloat16 for products on the matrix units
  bool silu;                    // activates the result

  bool in_bfloat16() const { return packed_dtype == at::kBFloat16; }
};

// The packed parameters, as mobilevit_kernels/ops/packing.py writes them: inputs are [kernel row, kernel column,
// channel], in 16 bits with pairs of channels.
template <typename W>
struct ConvolutionWeights {
  PackedLinear<W> linear;
  int64_t total;  // elements

  ConvolutionWeights(const void* packed, const ConvolutionShape& shape) {
    PackedReader<W> reader(static_cast<const W*>(packed));
    const int64_t taps = shape.kernel_size * shape.kernel_size;
    linear = reader.linear(shape.out_channels, taps * paired_inputs<W>(shape.in_channels));
    total = reader.total();
  }
};

MOBILEVIT_DECLARE_KERNEL(convolution, Convolution)

}  // namespace mobilevit::cpu

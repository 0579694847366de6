// What the ATen side hands to the kernels of depthwise_conv2d. Maps are dense NHWC, weights [C, 3, 3] of the same
// dtype.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/input_activation.h"

namespace mobilevit::cpu {

// Padding is as wide as the dilation, on all sides.
struct DepthwiseConv2dShape {
  int64_t batch, channels, height, width, stride, dilation;
  at::ScalarType dtype;

  int64_t out_height() const { return (height - 1) / stride + 1; }
  int64_t out_width() const { return (width - 1) / stride + 1; }
};

struct DepthwiseConv2d {
  DepthwiseConv2dShape shape;
  const void *x, *weight;
  void* out;
  InputActivation activation;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

// A gradient that is not wanted is null. grad_x is the gradient before SiLU, behind the norm. norm_sums: of grad_x and
// of grad_x (x - mean) for each channel, where there is a norm, [2, C].
struct DepthwiseConv2dBackward {
  DepthwiseConv2dShape shape;
  const void *grad_out, *x, *weight;
  void *grad_x, *grad_weight;
  InputActivation activation;
  double* norm_sums;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(depthwise_conv2d_forward, DepthwiseConv2d)
MOBILEVIT_DECLARE_KERNEL(depthwise_conv2d_backward, DepthwiseConv2dBackward)

}  // namespace mobilevit::cpu

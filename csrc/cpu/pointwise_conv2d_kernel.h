// What the ATen side hands to the kernels of pointwise_conv2d. Maps are dense NHWC: rows of channels.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/input_activation.h"

namespace mobilevit::cpu {

struct PointwiseShape {
  int64_t rows, inputs, outputs;
  at::ScalarType dtype;  // of the maps and the weight [outputs, inputs]
};

// The bias is in the accumulation type, or null.
struct PointwiseConv2d {
  PointwiseShape shape;
  const void *x, *weight, *bias;
  void* out;
  InputActivation activation;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

// Gradients that nobody wants are null; those of the parameters are in the accumulation type. norm_sums: of grad_x and
// of grad_x (x - mean) for each channel, where there is a norm, [2, inputs].
struct PointwiseConv2dBackward {
  PointwiseShape shape;
  const void *grad_out, *x, *weight;
  void *grad_x, *grad_weight, *grad_bias;
  InputActivation activation;
  double* norm_sums;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(pointwise_conv2d_forward, PointwiseConv2d)
MOBILEVIT_DECLARE_KERNEL(pointwise_conv2d_backward, PointwiseConv2dBackward)

}  // namespace mobilevit::cpu

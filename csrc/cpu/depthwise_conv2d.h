// The convolution of depthwise_conv2d, of a map or of an activated one.
#pragma once

#include "cpu/input_activation.h"

#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>

namespace mobilevit::cpu {

at::Tensor depthwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation, const InputActivation& activation);

// norm_sums: as in the kernel's arguments. Gradients of x (before SiLU, behind the norm) and weight; empty where they
// are not wanted.
std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation,
    const InputActivation& activation, std::array<bool, 2> output_mask, double* norm_sums = nullptr);

}  // namespace mobilevit::cpu

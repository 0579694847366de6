// The 1x1 convolution of pointwise_conv2d, of a map or of an activated one.
#pragma once

#include "cpu/input_activation.h"

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <tuple>

namespace mobilevit::cpu {

at::Tensor pointwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
    const InputActivation& activation);

// norm_sums: as in the kernel's arguments. Gradients of x (before SiLU, behind the norm), weight and bias; empty where
// they are not wanted.
std::tuple<at::Tensor, at::Tensor, at::Tensor> pointwise_conv2d_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, const InputActivation& activation,
    std::array<bool, 3> output_mask, double* norm_sums = nullptr);

}  // namespace mobilevit::cpu

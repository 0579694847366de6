// mobilevit::batch_norm_conv2d on the CPU: the statistics in one pass over x, the rest as the convolution reads it.
// Backward the convolution gives the gradient behind the norm, with SiLU done, and the norm's replaces it in place.
#include "checks.h"
#include "cpu/batch_norm.h"
#include "cpu/depthwise_conv2d.h"
#include "cpu/pointwise_conv2d.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <vector>

namespace mobilevit::cpu {
namespace {

InputActivation activation_of(
    const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& mean, const at::Tensor& var, double eps,
    bool silu) {
  return {
      weight.const_data_ptr(), bias.const_data_ptr(), mean.const_data_ptr(), var.const_data_ptr(), eps, silu,
  };
}

bool is_pointwise(const at::Tensor& weight) { return weight.size(2) == 1; }

std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, const at::Tensor& weight,
    double eps, bool silu, int64_t stride, int64_t dilation) {
  check_batch_norm_conv2d(x, norm_weight, norm_bias, weight, eps, stride, dilation);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor scale = norm_vector(norm_weight, x), shift = norm_vector(norm_bias, x);
  const at::Tensor mean = at::empty_like(scale), var = at::empty_like(scale);
  run_batch_norm_forward(
      {batch_norm_shape(x, eps, false), map.const_data_ptr(), nullptr, nullptr, nullptr, mean.mutable_data_ptr(),
       var.mutable_data_ptr()});
  const InputActivation activation = activation_of(scale, shift, mean, var, eps, silu);
  const at::Tensor out = is_pointwise(weight) ? pointwise_conv2d(map, weight, {}, activation)
                                              : depthwise_conv2d(map, weight, stride, dilation, activation);
  return {out, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias,
    const at::Tensor& weight, const at::Tensor& mean, const at::Tensor& var, double eps, bool silu, int64_t stride,
    int64_t dilation) {
  check_batch_norm_conv2d(x, norm_weight, norm_bias, weight, eps, stride, dilation);
  check_saved("mean", mean, {x.size(1)}, accumulate_dtype(x), x);
  check_saved("var", var, {x.size(1)}, accumulate_dtype(x), x);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor scale = norm_vector(norm_weight, x), shift = norm_vector(norm_bias, x);
  const at::Tensor dense_mean = mean.contiguous(), dense_var = var.contiguous();
  const InputActivation activation = activation_of(scale, shift, dense_mean, dense_var, eps, silu);
  at::Tensor grad_x, grad_weight;
  std::vector<double> sums(2 * x.size(1));
  if (is_pointwise(weight)) {
    std::tie(grad_x, grad_weight, std::ignore) =
        pointwise_conv2d_backward(grad_out, map, weight, activation, {true, true, false}, sums.data());
  } else {
    std::tie(grad_x, grad_weight) =
        depthwise_conv2d_backward(grad_out, map, weight, stride, dilation, activation, {true, true}, sums.data());
  }
  const at::Tensor grad_scale = at::empty_like(scale), grad_shift = at::empty_like(scale);
  run_batch_norm_backward(
      {batch_norm_shape(x, eps, false), grad_x.const_data_ptr(), map.const_data_ptr(), scale.const_data_ptr(),
       shift.const_data_ptr(), dense_mean.const_data_ptr(), dense_var.const_data_ptr(), grad_x.mutable_data_ptr(),
       grad_scale.mutable_data_ptr(), grad_shift.mutable_data_ptr(), sums.data()});
  return {grad_x, grad_scale.to(norm_weight.scalar_type()), grad_shift.to(norm_bias.scalar_type()), grad_weight};
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("batch_norm_conv2d", &forward);
  m.impl("batch_norm_conv2d_backward", &backward);
}

}  // namespace mobilevit::cpu

// mobilevit::batch_norm on the CPU.
#include "cpu/batch_norm.h"

#include "checks.h"

#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <tuple>

namespace mobilevit::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> batch_norm(
    const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps, bool silu) {
  check_batch_norm(x, weight, bias, eps);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), out = empty_map(x, x.size(1));
  const at::Tensor scale = norm_vector(weight, x), shift = norm_vector(bias, x);
  const at::Tensor mean = at::empty_like(scale), var = at::empty_like(scale);
  run_batch_norm_forward(
      {batch_norm_shape(x, eps, silu), map.const_data_ptr(), scale.const_data_ptr(), shift.const_data_ptr(),
       out.mutable_data_ptr(), mean.mutable_data_ptr(), var.mutable_data_ptr()});
  return {out, mean, var};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
    const at::Tensor& mean, const at::Tensor& var, double eps, bool silu) {
  check_batch_norm(x, weight, bias, eps);
  TORCH_CHECK_VALUE(
      grad_out.sizes() == x.sizes(), "grad_out: expected ", x.sizes(), " as x has, got ", grad_out.sizes());
  check_alike("grad_out", grad_out, x);
  check_saved("mean", mean, {x.size(1)}, accumulate_dtype(x), x);
  check_saved("var", var, {x.size(1)}, accumulate_dtype(x), x);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast),
                   grad_map = grad_out.contiguous(at::MemoryFormat::ChannelsLast), grad_x = empty_map(x, x.size(1));
  const at::Tensor scale = norm_vector(weight, x), shift = norm_vector(bias, x);
  const at::Tensor dense_mean = mean.contiguous(), dense_var = var.contiguous();
  const at::Tensor grad_weight = at::empty_like(scale), grad_bias = at::empty_like(scale);
  run_batch_norm_backward(
      {batch_norm_shape(x, eps, silu), grad_map.const_data_ptr(), map.const_data_ptr(), scale.const_data_ptr(),
       shift.const_data_ptr(), dense_mean.const_data_ptr(), dense_var.const_data_ptr(), grad_x.mutable_data_ptr(),
       grad_weight.mutable_data_ptr(), grad_bias.mutable_data_ptr()});
  return {grad_x, grad_weight.to(weight.scalar_type()), grad_bias.to(bias.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("batch_norm", &batch_norm);
  m.impl("batch_norm_backward", &backward);
}

}  // namespace mobilevit::cpu

// mobilevit::pointwise_conv2d on the CPU.
#include "cpu/pointwise_conv2d.h"

#include "checks.h"
#include "cpu/maps.h"
#include "cpu/pointwise_conv2d_kernel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

PointwiseShape shape_of(const at::Tensor& x, const at::Tensor& weight) {
  return {x.size(0) * x.size(2) * x.size(3), x.size(1), weight.size(0), x.scalar_type()};
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, bool silu_input) {
  return pointwise_conv2d(x, weight, bias, {.silu = silu_input});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, bool silu_input,
    std::array<bool, 3> output_mask) {
  return pointwise_conv2d_backward(grad_out, x, weight, {.silu = silu_input}, output_mask);
}

}  // namespace

at::Tensor pointwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias, const InputActivation& activation) {
  check_pointwise_conv2d(x, weight, bias);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), matrix = weight.contiguous();
  const bool has_bias = bias.has_value() && bias->defined();
  const at::Tensor vector = has_bias ? bias->to(accumulate_dtype(x)).contiguous() : at::Tensor();
  const at::Tensor out = empty_map(x, weight.size(0));
  if (out.numel() > 0) {
    run_pointwise_conv2d_forward(
        {shape_of(x, weight), map.const_data_ptr(), matrix.const_data_ptr(),
         has_bias ? vector.const_data_ptr() : nullptr, out.mutable_data_ptr(), activation});
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> pointwise_conv2d_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, const InputActivation& activation,
    std::array<bool, 3> output_mask, double* norm_sums) {
  check_pointwise_conv2d(x, weight, {});
  const std::array<int64_t, 4> sizes = {x.size(0), weight.size(0), x.size(2), x.size(3)};
  check_saved("grad_out", grad_out, sizes, x.scalar_type(), x);
  const auto [want_x, want_weight, want_bias] = output_mask;
  const bool reads_x = want_weight || activation.any();
  const at::Tensor map = reads_x ? x.contiguous(at::MemoryFormat::ChannelsLast) : x,
                   grad_map = grad_out.contiguous(at::MemoryFormat::ChannelsLast), matrix = weight.contiguous();
  const at::Tensor grad_x = want_x ? empty_map(x, x.size(1)) : at::empty({0}, x.options());
  const bool empty = grad_out.numel() == 0;
  const auto grad_parameter = [&](bool wanted, at::IntArrayRef parameter_sizes) {
    const auto options = x.options().dtype(accumulate_dtype(x));
    if (!wanted) return at::empty({0}, options);
    return empty ? at::zeros(parameter_sizes, options) : at::empty(parameter_sizes, options);
  };
  const at::Tensor grad_weight = grad_parameter(want_weight, weight.sizes()),
                   grad_bias = grad_parameter(want_bias, {weight.size(0)});
  const auto wanted = [](bool want, const at::Tensor& grad) { return want ? grad.mutable_data_ptr() : nullptr; };
  if (!empty) {
    run_pointwise_conv2d_backward(
        {shape_of(x, weight), grad_map.const_data_ptr(), map.const_data_ptr(), matrix.const_data_ptr(),
         wanted(want_x, grad_x), wanted(want_weight, grad_weight), wanted(want_bias, grad_bias), activation,
         norm_sums});
  }
  return {grad_x, grad_weight.to(x.scalar_type()), grad_bias.to(x.scalar_type())};
}

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("pointwise_conv2d", &forward);
  m.impl("pointwise_conv2d_backward", &backward);
}

}  // namespace mobilevit::cpu

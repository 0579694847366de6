// mobilevit::depthwise_conv2d on the CPU.
#include "cpu/depthwise_conv2d.h"

#include "checks.h"
#include "cpu/depthwise_conv2d_kernel.h"
#include "cpu/maps.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

namespace mobilevit::cpu {
namespace {

// Strides and dilations beyond the map do what those of its size do, and no index of theirs overflows.
DepthwiseConv2dShape shape_of(const at::Tensor& x, int64_t stride, int64_t dilation) {
  const int64_t height = x.size(2), width = x.size(3), side = std::max(height, width);
  return {x.size(0), x.size(1), height, width, std::min(stride, side), std::min(dilation, side), x.scalar_type()};
}

std::array<int64_t, 4> out_sizes(const DepthwiseConv2dShape& shape) {
  return {shape.batch, shape.channels, shape.out_height(), shape.out_width()};
}

at::Tensor forward(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation) {
  return depthwise_conv2d(x, weight, stride, dilation, {});
}

std::tuple<at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation,
    std::array<bool, 2> output_mask) {
  return depthwise_conv2d_backward(grad_out, x, weight, stride, dilation, {}, output_mask);
}

}  // namespace

at::Tensor depthwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation,
    const InputActivation& activation) {
  check_depthwise_conv2d(x, weight, stride, dilation);
  const DepthwiseConv2dShape shape = shape_of(x, stride, dilation);
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast), taps = weight.contiguous();
  const at::Tensor out = empty_map(out_sizes(shape), x.options());
  if (out.numel() > 0) {
    run_depthwise_conv2d_forward(
        {shape, map.const_data_ptr(), taps.const_data_ptr(), out.mutable_data_ptr(), activation});
  }
  return out;
}

std::tuple<at::Tensor, at::Tensor> depthwise_conv2d_backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation,
    const InputActivation& activation, std::array<bool, 2> output_mask, double* norm_sums) {
  check_depthwise_conv2d(x, weight, stride, dilation);
  const DepthwiseConv2dShape shape = shape_of(x, stride, dilation);
  check_saved("grad_out", grad_out, out_sizes(shape), x.scalar_type(), x);
  const auto [want_grad_x, want_grad_weight] = output_mask;
  const bool empty = x.numel() == 0;
  const at::Tensor grad_x = want_grad_x ? empty_map(x, x.size(1)) : at::empty({0}, x.options());
  const at::Tensor grad_weight = !want_grad_weight ? at::empty({0}, x.options())
      : empty                                      ? at::zeros(weight.sizes(), x.options())
                                                   : at::empty(weight.sizes(), x.options());
  if (!empty && (want_grad_x || want_grad_weight)) {
    const at::Tensor map = want_grad_weight || activation.any() ? x.contiguous(at::MemoryFormat::ChannelsLast) : x;
    const at::Tensor grad_map = grad_out.contiguous(at::MemoryFormat::ChannelsLast), taps = weight.contiguous();
    run_depthwise_conv2d_backward(
        {shape, grad_map.const_data_ptr(), map.const_data_ptr(), taps.const_data_ptr(),
         want_grad_x ? grad_x.mutable_data_ptr() : nullptr, want_grad_weight ? grad_weight.mutable_data_ptr() : nullptr,
         activation, norm_sums});
  }
  return {grad_x, grad_weight};
}

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("depthwise_conv2d", &forward);
  m.impl("depthwise_conv2d_backward", &backward);
}

}  // namespace mobilevit::cpu

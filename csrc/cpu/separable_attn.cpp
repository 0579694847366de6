// mobilevit::separable_attn on the CPU.
#include "checks.h"
#include "cpu/maps.h"
#include "cpu/separable_attn_kernel.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <array>
#include <tuple>

namespace mobilevit::cpu {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

SeparableShape shape_of(const at::Tensor& x, at::IntArrayRef patch_size) {
  return {grid_of(x, patch_size), x.size(1), x.scalar_type()};
}

// Dense, or undefined as it came.
at::Tensor dense(const OptionalTensor& parameter) {
  return parameter.has_value() && parameter->defined() ? parameter->contiguous() : at::Tensor();
}

const void* data_or_null(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> forward(
    const at::Tensor& x, const at::Tensor& qkv_weight, const OptionalTensor& qkv_bias, const at::Tensor& out_weight,
    const OptionalTensor& out_bias, at::IntArrayRef patch_size) {
  check_separable_attn(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size);
  const SeparableShape shape = shape_of(x, patch_size);
  const int64_t channels = shape.channels, positions = shape.grid.positions();
  const at::Tensor map = with_adjacent_channels(x);
  const at::Tensor weight = dense(qkv_weight), bias = dense(qkv_bias);
  const at::Tensor projection = dense(out_weight), projection_bias = dense(out_bias);

  const auto options = x.options().dtype(accumulate_dtype(x));
  const at::Tensor out = empty_map(x, channels);
  const at::Tensor scores = at::empty({x.size(0), positions, shape.grid.tokens()}, options);
  const at::Tensor pooled = at::empty({x.size(0), positions, channels}, options);
  const at::Tensor context = at::empty(pooled.sizes(), options);
  if (out.numel() > 0) {
    run_separable_attn_forward(
        {shape,
         {weight.const_data_ptr(), data_or_null(bias), projection.const_data_ptr(), data_or_null(projection_bias)},
         view_of(map),
         view_of(out),
         scores.mutable_data_ptr(),
         pooled.mutable_data_ptr(),
         context.mutable_data_ptr()});
  } else {
    // Groups without tokens have nothing to pool; zero keeps the saved statistics defined.
    pooled.zero_();
    context.zero_();
  }
  return {out, scores, pooled, context};
}

at::Tensor separable_attn(
    const at::Tensor& x, const at::Tensor& qkv_weight, const OptionalTensor& qkv_bias, const at::Tensor& out_weight,
    const OptionalTensor& out_bias, at::IntArrayRef patch_size) {
  return std::get<0>(forward(x, qkv_weight, qkv_bias, out_weight, out_bias, patch_size));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_out, const at::Tensor& x, const at::Tensor& qkv_weight, const OptionalTensor& qkv_bias,
    const at::Tensor& out_weight, const at::Tensor& scores, const at::Tensor& pooled, const at::Tensor& context,
    at::IntArrayRef patch_size, std::array<bool, 2> output_mask) {
  check_separable_attn(x, qkv_weight, qkv_bias, out_weight, {}, patch_size);
  TORCH_CHECK_VALUE(
      grad_out.sizes() == x.sizes(), "grad_out: expected ", x.sizes(), " as x has, got ", grad_out.sizes());
  check_alike("grad_out", grad_out, x);
  const SeparableShape shape = shape_of(x, patch_size);
  const int64_t channels = shape.channels, rows = 1 + 2 * channels;
  const int64_t batch = x.size(0), positions = shape.grid.positions();
  const at::ScalarType dtype = accumulate_dtype(x);
  check_saved("scores", scores, {batch, positions, shape.grid.tokens()}, dtype, x);
  check_saved("pooled", pooled, {batch, positions, channels}, dtype, x);
  check_saved("context", context, {batch, positions, channels}, dtype, x);

  const at::Tensor map = with_adjacent_channels(x), grad_map = with_adjacent_channels(grad_out);
  const at::Tensor weight = dense(qkv_weight), bias = dense(qkv_bias), projection = dense(out_weight);
  const at::Tensor dense_scores = scores.contiguous(), dense_pooled = pooled.contiguous(),
                   dense_context = context.contiguous();
  const auto [want_grad_x, want_grad_weights] = output_mask;
  const at::Tensor grad_x = want_grad_x ? empty_map(x, channels) : at::empty({0}, x.options());
  const bool empty = x.numel() == 0;
  const auto grad_parameter = [&, wanted = want_grad_weights](at::IntArrayRef sizes) {
    const auto options = x.options().dtype(accumulate_dtype(x));
    if (!wanted) return at::empty({0}, options);
    return empty ? at::zeros(sizes, options) : at::empty(sizes, options);
  };
  const at::Tensor grad_weight = grad_parameter({rows, channels}), grad_bias = grad_parameter({rows}),
                   grad_projection = grad_parameter({channels, channels}),
                   grad_projection_bias = grad_parameter({channels});
  if (!empty) {
    run_separable_attn_backward(
        {shape,
         {weight.const_data_ptr(), data_or_null(bias), projection.const_data_ptr(), nullptr},
         view_of(grad_map),
         view_of(map),
         want_grad_x ? view_of(grad_x) : MapView(),
         dense_scores.const_data_ptr(),
         dense_pooled.const_data_ptr(),
         dense_context.const_data_ptr(),
         want_grad_x,
         want_grad_weights,
         grad_weight.mutable_data_ptr(),
         grad_bias.mutable_data_ptr(),
         grad_projection.mutable_data_ptr(),
         grad_projection_bias.mutable_data_ptr()});
  }
  const auto finished = [&, wanted = want_grad_weights](const at::Tensor& grad, at::IntArrayRef sizes) {
    return wanted ? grad.to(x.scalar_type()).view(sizes) : grad.to(x.scalar_type());
  };
  return {
      grad_x, finished(grad_weight, qkv_weight.sizes()), finished(grad_bias, {rows}),
      finished(grad_projection, out_weight.sizes()), finished(grad_projection_bias, {channels})};
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("separable_attn", &separable_attn);
  m.impl("separable_attn_forward", &forward);
  m.impl("separable_attn_backward", &backward);
}

}  // namespace mobilevit::cpu

// mobilevit::unfold_attn_fold on the CPU.
#include "checks.h"
#include "cpu/maps.h"
#include "cpu/unfold_attn_fold_kernel.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <tuple>

namespace mobilevit::cpu {
namespace {

AttnShape shape_of(const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size, std::optional<double> scale) {
  const int64_t head_dim = qkv.size(1) / (3 * num_heads);
  const double default_scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  return {grid_of(qkv, patch_size), num_heads, head_dim, scale.value_or(default_scale), qkv.scalar_type()};
}

// logsumexp: memory of [B, P, heads, N], or nullptr.
at::Tensor attend(const at::Tensor& qkv, const AttnShape& shape, void* logsumexp) {
  const at::Tensor map = with_adjacent_channels(qkv);
  const at::Tensor out = empty_map(qkv, shape.heads * shape.head_dim);
  if (out.numel() > 0) run_unfold_attn_fold_forward({shape, view_of(map), view_of(out), logsumexp});
  return out;
}

at::Tensor unfold_attn_fold(
    const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size, std::optional<double> scale) {
  check_unfold_attn_fold(qkv, num_heads, patch_size);
  return attend(qkv, shape_of(qkv, num_heads, patch_size, scale), nullptr);
}

std::tuple<at::Tensor, at::Tensor> forward(
    const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size, std::optional<double> scale) {
  check_unfold_attn_fold(qkv, num_heads, patch_size);
  const AttnShape shape = shape_of(qkv, num_heads, patch_size, scale);
  const at::Tensor logsumexp = at::empty(
      {qkv.size(0), shape.grid.positions(), num_heads, shape.grid.tokens()},
      qkv.options().dtype(accumulate_dtype(qkv)));
  return {attend(qkv, shape, logsumexp.mutable_data_ptr()), logsumexp};
}

at::Tensor backward(
    const at::Tensor& grad_out, const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& logsumexp,
    int64_t num_heads, at::IntArrayRef patch_size, std::optional<double> scale) {
  check_unfold_attn_fold(qkv, num_heads, patch_size);
  const AttnShape shape = shape_of(qkv, num_heads, patch_size, scale);
  for (const auto& [name, tensor] : {std::pair("grad_out", grad_out), std::pair("out", out)}) {
    TORCH_CHECK_VALUE(
        tensor.dim() == 4 && tensor.size(0) == qkv.size(0) && tensor.size(1) * 3 == qkv.size(1) &&
            tensor.size(2) == qkv.size(2) && tensor.size(3) == qkv.size(3),
        name, ": expected the shape of the output, got ", tensor.sizes());
    check_alike(name, tensor, qkv);
  }
  const at::Tensor map = with_adjacent_channels(qkv), out_map = with_adjacent_channels(out),
                   grad_map = with_adjacent_channels(grad_out);
  check_saved(
      "logsumexp", logsumexp, {qkv.size(0), shape.grid.positions(), num_heads, shape.grid.tokens()},
      accumulate_dtype(qkv), qkv);
  const at::Tensor stats = logsumexp.contiguous();
  const at::Tensor grad_qkv = empty_map(qkv, qkv.size(1));
  if (grad_qkv.numel() > 0) {
    run_unfold_attn_fold_backward(
        {shape, view_of(grad_map), view_of(map), view_of(out_map), view_of(grad_qkv), stats.const_data_ptr()});
  }
  return grad_qkv;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("unfold_attn_fold", &unfold_attn_fold);
  m.impl("unfold_attn_fold_forward", &forward);
  m.impl("unfold_attn_fold_backward", &backward);
}

}  // namespace mobilevit::cpu

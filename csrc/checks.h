// The contract of each op, checked before any kernel runs. mobilevit_kernels/ops/checks.py says the same in Python.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <utility>

namespace mobilevit {

inline void check_floating(const char* name, const at::Tensor& x) {
  TORCH_CHECK_TYPE(
      at::isFloatingType(x.scalar_type()), name, ": expected a floating-point dtype, got torch.",
      c10::getDtypeNames(x.scalar_type()).first);
}

inline void check_positive(const char* name, int64_t value) {
  TORCH_CHECK_VALUE(value >= 1, name, ": expected a positive int, got ", value);
}

inline void check_alike(const char* name, const at::Tensor& tensor, const at::Tensor& x) {
  TORCH_CHECK_TYPE(
      tensor.scalar_type() == x.scalar_type(), name, ": expected torch.", c10::getDtypeNames(x.scalar_type()).first,
      " as x has, got torch.", c10::getDtypeNames(tensor.scalar_type()).first);
  TORCH_CHECK_VALUE(
      tensor.device() == x.device(), name, ": expected device ", x.device(), " as x has, got ", tensor.device());
}

inline void check_storage_dtype(const char* name, at::ScalarType dtype) {
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, name,
      ": expected float32, bfloat16 or float16, got torch.", c10::getDtypeNames(dtype).first);
}

// Of the ops that compute in float32 whatever the dtype of the map.
inline void check_storage_map(const char* name, const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, ": expected 4 dimensions [B, C, H, W], got ", x.dim());
  check_storage_dtype(name, x.scalar_type());
  TORCH_CHECK_VALUE(x.size(1) >= 1, name, ": expected at least one channel, got 0");
}

// A second map whose channels follow those of x, if there is one.
inline void check_beside(const std::optional<at::Tensor>& beside, const at::Tensor& x) {
  if (!beside.has_value()) return;
  check_storage_map("beside", *beside);
  check_alike("beside", *beside, x);
  TORCH_CHECK_VALUE(
      beside->size(0) == x.size(0) && beside->size(2) == x.size(2) && beside->size(3) == x.size(3),
      "beside: expected batch, height and width of x, ", x.size(0), ", ", x.size(2), " and ", x.size(3), ", got ",
      beside->size(0), ", ", beside->size(2), " and ", beside->size(3));
}

// Parameters in the layout of mobilevit_kernels/ops/packing.py.
inline void check_packed(const at::Tensor& packed, const at::Tensor& x) {
  TORCH_CHECK_TYPE(
      packed.scalar_type() == at::kFloat || packed.scalar_type() == at::kBFloat16,
      "packed: expected torch.float32 or torch.bfloat16, got torch.", c10::getDtypeNames(packed.scalar_type()).first);
  TORCH_CHECK_VALUE(
      packed.dim() == 1 && packed.is_contiguous() && packed.device() == x.device(),
      "packed: expected a dense vector on ", x.device(), ", got ", packed.dim(), " dimensions on ", packed.device());
}

inline void check_patch_grid(const char* name, const at::Tensor& x, at::IntArrayRef patch_size) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, ": expected 4 dimensions [B, C, H, W], got ", x.dim());
  TORCH_CHECK_VALUE(patch_size.size() == 2, "patch_size: expected two positive ints, got ", patch_size);
  const int64_t ph = patch_size[0], pw = patch_size[1];
  TORCH_CHECK_VALUE(ph >= 1 && pw >= 1, "patch_size: expected two positive ints, got (", ph, ", ", pw, ")");
  TORCH_CHECK_VALUE(
      x.size(2) % ph == 0 && x.size(3) % pw == 0, name, ": H and W must be divisible by patch_size (", ph, ", ", pw,
      "), got ", x.size(2), " x ", x.size(3));
}

inline void check_unfold_attn_fold(const at::Tensor& qkv, int64_t num_heads, at::IntArrayRef patch_size) {
  check_patch_grid("qkv", qkv, patch_size);
  check_floating("qkv", qkv);
  TORCH_CHECK_VALUE(num_heads >= 1, "num_heads: expected a positive int, got ", num_heads);
  const int64_t channels = qkv.size(1);
  TORCH_CHECK_VALUE(
      channels >= 1 && num_heads <= channels && channels % (3 * num_heads) == 0,
      "qkv: channels must be 3 * num_heads * head_dim with num_heads=", num_heads, ", got ", channels);
}

inline void check_weight(const char* name, const at::Tensor& weight, int64_t rows, const at::Tensor& x) {
  const int64_t columns = x.size(1);
  const bool matrix = weight.dim() == 2 || (weight.dim() == 4 && weight.size(2) == 1 && weight.size(3) == 1);
  TORCH_CHECK_VALUE(
      matrix && weight.size(0) == rows && weight.size(1) == columns, name, ": expected [", rows, ", ", columns,
      "] or [", rows, ", ", columns, ", 1, 1], got ", weight.sizes());
  check_alike(name, weight, x);
}

inline void check_bias(const char* name, const std::optional<at::Tensor>& bias, int64_t size, const at::Tensor& x) {
  if (!bias.has_value() || !bias->defined()) return;
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->size(0) == size, name, ": expected [", size, "], got ", bias->sizes());
  check_alike(name, *bias, x);
}

inline void check_separable_attn(
    const at::Tensor& x, const at::Tensor& qkv_weight, const std::optional<at::Tensor>& qkv_bias,
    const at::Tensor& out_weight, const std::optional<at::Tensor>& out_bias, at::IntArrayRef patch_size) {
  check_patch_grid("x", x, patch_size);
  check_floating("x", x);
  const int64_t channels = x.size(1);
  TORCH_CHECK_VALUE(channels >= 1, "x: expected at least one channel, got 0");
  check_weight("qkv_weight", qkv_weight, 1 + 2 * channels, x);
  check_bias("qkv_bias", qkv_bias, 1 + 2 * channels, x);
  check_weight("out_weight", out_weight, channels, x);
  check_bias("out_bias", out_bias, channels, x);
}

inline void check_norm_vector(const char* name, const at::Tensor& vector, const at::Tensor& x) {
  check_floating(name, vector);
  TORCH_CHECK_VALUE(
      vector.dim() == 1 && vector.size(0) == x.size(1) && vector.device() == x.device(), name, ": expected [",
      x.size(1), "] on ", x.device(), ", got ", vector.sizes(), " on ", vector.device());
}

// What a BatchNorm by the statistics of the batch needs of its map.
inline void check_normalizable(const at::Tensor& x, double eps) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x: expected 4 dimensions [B, C, H, W], got ", x.dim());
  check_floating("x", x);
  TORCH_CHECK_VALUE(
      x.size(1) >= 1 && x.numel() > x.size(1), "x: expected more than one value per channel, got ", x.sizes());
  TORCH_CHECK_VALUE(eps >= 0, "eps: expected 0 or more, got ", eps);
}

inline void check_batch_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check_normalizable(x, eps);
  check_norm_vector("weight", weight, x);
  check_norm_vector("bias", bias, x);
}

inline void check_map(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() == 4, "x: expected 4 dimensions [B, C, H, W], got ", x.dim());
  check_floating("x", x);
  TORCH_CHECK_VALUE(x.size(1) >= 1, "x: expected at least one channel, got 0");
}

inline void check_pointwise_conv2d(
    const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  check_map(x);
  TORCH_CHECK_VALUE(
      weight.dim() >= 1 && weight.size(0) >= 1, "weight: expected at least one row, got ", weight.sizes());
  check_weight("weight", weight, weight.size(0), x);
  check_bias("bias", bias, weight.size(0), x);
}

inline void check_depthwise_conv2d(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t dilation) {
  check_map(x);
  const std::array<int64_t, 4> expected = {x.size(1), 1, 3, 3};
  TORCH_CHECK_VALUE(
      weight.sizes() == at::IntArrayRef(expected), "weight: expected ", at::IntArrayRef(expected), ", got ",
      weight.sizes());
  check_alike("weight", weight, x);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  TORCH_CHECK_VALUE(
      x.size(2) >= 1 && x.size(3) >= 1, "x: expected at least one pixel, got ", x.size(2), " x ", x.size(3));
}

inline void check_batch_norm_conv2d(
    const at::Tensor& x, const at::Tensor& norm_weight, const at::Tensor& norm_bias, const at::Tensor& weight,
    double eps, int64_t stride, int64_t dilation) {
  check_normalizable(x, eps);
  check_norm_vector("norm_weight", norm_weight, x);
  check_norm_vector("norm_bias", norm_bias, x);
  const int64_t channels = x.size(1);
  const bool pointwise = weight.dim() == 4 && weight.size(0) >= 1 && weight.size(1) == channels &&
      weight.size(2) == 1 && weight.size(3) == 1;
  const bool depthwise = weight.dim() == 4 && weight.size(0) == channels && weight.size(1) == 1 &&
      weight.size(2) == 3 && weight.size(3) == 3;
  TORCH_CHECK_VALUE(
      pointwise || depthwise, "weight: expected [O, ", channels, ", 1, 1] or [", channels, ", 1, 3, 3], got ",
      weight.sizes());
  check_alike("weight", weight, x);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  TORCH_CHECK_VALUE(depthwise || stride == 1, "stride: expected 1 with a kernel of one pixel, got ", stride);
}

// What a forward op returned, or its gradient, which the backward reads.
inline void check_saved(
    const char* name, const at::Tensor& saved, at::IntArrayRef sizes, at::ScalarType dtype, const at::Tensor& x) {
  TORCH_CHECK_VALUE(
      saved.sizes() == sizes, name, ": expected ", sizes, " as the forward returned, got ", saved.sizes());
  TORCH_CHECK_TYPE(
      saved.scalar_type() == dtype, name, ": expected torch.", c10::getDtypeNames(dtype).first,
      " as the forward returned, got torch.", c10::getDtypeNames(saved.scalar_type()).first);
  TORCH_CHECK_VALUE(saved.device() == x.device(), name, ": expected device ", x.device(), ", got ", saved.device());
}

}  // namespace mobilevit

// mobilevit::transformer and mobilevit::separable_transformer on the CPU.
#include "checks.h"
#include "cpu/map_memory.h"
#include "cpu/maps.h"
#include "cpu/transformer_kernel.h"

#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

void check(const at::Tensor& x, int64_t num_layers, int64_t hidden_dim, at::IntArrayRef patch_size) {
  check_patch_grid("x", x, patch_size);
  check_storage_map("x", x);
  TORCH_CHECK_VALUE(num_layers >= 0, "num_layers: expected 0 or more, got ", num_layers);
  check_positive("hidden_dim", hidden_dim);
}

template <template <typename> class Layer>
int64_t packed_total(const at::Tensor& packed, int64_t num_layers, int64_t channels, int64_t hidden_dim) {
  if (packed.scalar_type() == at::kFloat) {
    return TransformerWeights<Layer<float>, float>(packed.const_data_ptr(), num_layers, channels, hidden_dim).total;
  }
  using BFloat16 = c10::BFloat16;
  return TransformerWeights<Layer<BFloat16>, BFloat16>(packed.const_data_ptr(), num_layers, channels, hidden_dim).total;
}

template <template <typename> class Layer>
at::Tensor run(
    const at::Tensor& x, const at::Tensor& packed, int64_t num_layers, int64_t num_heads, int64_t hidden_dim,
    at::IntArrayRef patch_size, double eps, void (*kernel)(const Transformer&)) {
  check_packed(packed, x);
  const int64_t channels = x.size(1), total = packed_total<Layer>(packed, num_layers, channels, hidden_dim);
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", num_layers, " layers of ", channels,
      " channels and ", hidden_dim, " hidden ones, got ", packed.numel());
  const at::Tensor map = with_adjacent_channels(x);
  const at::Tensor out = empty_map(x.sizes(), x.options());
  if (out.numel() > 0) {
    const TransformerShape shape{grid_of(x, patch_size), channels, hidden_dim, num_heads, eps, x.scalar_type()};
    kernel({shape, view_of(map), view_of(out), packed.const_data_ptr(), packed.scalar_type(), num_layers});
  }
  return out;
}

at::Tensor transformer(
    const at::Tensor& x, const at::Tensor& packed, int64_t num_layers, int64_t num_heads, int64_t hidden_dim,
    at::IntArrayRef patch_size, double eps) {
  check(x, num_layers, hidden_dim, patch_size);
  TORCH_CHECK_VALUE(
      num_heads >= 1 && x.size(1) % num_heads == 0, "num_heads: expected a positive divisor of C=", x.size(1), ", got ",
      num_heads);
  return run<TransformerLayerWeights>(x, packed, num_layers, num_heads, hidden_dim, patch_size, eps, &run_transformer);
}

at::Tensor separable_transformer(
    const at::Tensor& x, const at::Tensor& packed, int64_t num_layers, int64_t hidden_dim, at::IntArrayRef patch_size,
    double eps) {
  check(x, num_layers, hidden_dim, patch_size);
  return run<SeparableLayerWeights>(x, packed, num_layers, 1, hidden_dim, patch_size, eps, &run_separable_transformer);
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) {
  m.impl("transformer", &transformer);
  m.impl("separable_transformer", &separable_transformer);
}

}  // namespace mobilevit::cpu

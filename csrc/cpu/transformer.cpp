// mobilevit::transformer and mobilevit::separable_transformer on the CPU.
#include "checks.h"
#include "cpu/maps.h"
#include "cpu/transformer_kernel.h"

#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

void check(const at::Tensor& x, int64_t num_layers, int64_t hidden_dim, at::IntArrayRef patch_size) {
  check_patch_grid("x", x, patch_size);
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf,
      "x: expected float32, bfloat16 or float16, got torch.", c10::getDtypeNames(dtype).first);
  TORCH_CHECK_VALUE(x.size(1) >= 1, "x: expected at least one channel, got 0");
  TORCH_CHECK_VALUE(num_layers >= 0, "num_layers: expected 0 or more, got ", num_layers);
  TORCH_CHECK_VALUE(hidden_dim >= 1, "hidden_dim: expected a positive int, got ", hidden_dim);
}

template <typename LayerWeights>
at::Tensor run(
    const at::Tensor& x, const at::Tensor& packed, int64_t num_layers, int64_t num_heads, int64_t hidden_dim,
    at::IntArrayRef patch_size, double eps, void (*kernel)(const TransformerArguments<LayerWeights>&)) {
  TORCH_CHECK_TYPE(
      packed.scalar_type() == at::kFloat, "packed: expected torch.float32, got torch.",
      c10::getDtypeNames(packed.scalar_type()).first);
  TORCH_CHECK_VALUE(
      packed.dim() == 1 && packed.is_contiguous() && packed.device() == x.device(),
      "packed: expected a dense vector on ", x.device(), ", got ", packed.dim(), " dimensions on ", packed.device());
  const int64_t channels = x.size(1);
  PackedReader reader(packed.const_data_ptr<float>());
  std::vector<LayerWeights> layers;
  layers.reserve(num_layers);
  for (int64_t i = 0; i < num_layers; ++i) layers.emplace_back(reader, channels, hidden_dim);
  const NormWeights norm(reader, channels);
  TORCH_CHECK_VALUE(
      packed.numel() == reader.total(), "packed: expected ", reader.total(), " elements for ", num_layers,
      " layers of ", channels, " channels and ", hidden_dim, " hidden ones, got ", packed.numel());

  const at::Tensor map = with_adjacent_channels(x);
  const at::Tensor out = empty_map(x, channels);
  if (out.numel() > 0) {
    const TransformerShape shape{grid_of(x, patch_size), channels, hidden_dim, num_heads, eps, x.scalar_type()};
    kernel({shape, view_of(map), view_of(out), std::move(layers), norm});
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

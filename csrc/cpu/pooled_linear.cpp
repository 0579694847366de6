// mobilevit::pooled_linear on the CPU.
#include "cpu/pooled_linear_kernel.h"

#include "checks.h"
#include "cpu/maps.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

int64_t packed_total(at::ScalarType dtype, int64_t out_features, int64_t channels) {
  const auto total = [&](auto reader) {
    reader.linear(out_features, channels);
    return reader.total();
  };
  return dtype == at::kFloat ? total(PackedReader<float>(nullptr)) : total(PackedReader<c10::BFloat16>(nullptr));
}

at::Tensor pooled_linear(const at::Tensor& x, const at::Tensor& packed, int64_t out_features) {
  check_storage_map("x", x);
  check_positive("out_features", out_features);
  check_packed(packed, x);
  const int64_t channels = x.size(1), total = packed_total(packed.scalar_type(), out_features, channels);
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", channels, " channels and ", out_features,
      " features of the output, got ", packed.numel());
  TORCH_CHECK_VALUE(
      x.size(2) > 0 && x.size(3) > 0, "x: expected at least one pixel, got ", x.size(2), " x ", x.size(3));
  const at::Tensor map = with_adjacent_channels(x);
  const at::Tensor out = at::empty({x.size(0), out_features}, x.options());
  if (out.numel() > 0) {
    run_pooled_linear(
        {x.size(0), channels, x.size(2), x.size(3), out_features, view_of(map), out.mutable_data_ptr(), x.scalar_type(),
         packed.const_data_ptr(), packed.scalar_type()});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) { m.impl("pooled_linear", &pooled_linear); }

}  // namespace mobilevit::cpu

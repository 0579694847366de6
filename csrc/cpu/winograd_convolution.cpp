// mobilevit::winograd_convolution on the CPU.
#include "cpu/winograd_convolution_kernel.h"

#include "checks.h"
#include "cpu/maps.h"

#include <torch/library.h>

#include <optional>

namespace mobilevit::cpu {
namespace {

at::Tensor winograd_convolution(
    const at::Tensor& x, const at::Tensor& packed, int64_t out_channels, bool silu,
    const std::optional<at::Tensor>& beside) {
  check_storage_map("x", x);
  check_beside(beside, x);
  check_positive("out_channels", out_channels);
  check_packed(packed, x);
  TORCH_CHECK_TYPE(
      packed.scalar_type() == at::kFloat, "packed: expected torch.float32, got torch.",
      c10::getDtypeNames(packed.scalar_type()).first);
  const int64_t in_channels = x.size(1) + (beside.has_value() ? beside->size(1) : 0);
  const WinogradShape shape{x.size(0), x.size(2), x.size(3), in_channels, out_channels};
  const auto* parameters = packed.const_data_ptr<float>();
  const int64_t total = WinogradWeights(parameters, shape).total;
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", shape.in_channels, " channels and ",
      out_channels, " of the output, got ", packed.numel());
  const at::Tensor map = with_adjacent_channels(x), other = with_adjacent_channels(beside.value_or(x));
  const at::Tensor out = empty_map(x, out_channels);
  if (out.numel() > 0) {
    run_winograd_convolution(
        {shape, view_of(map), view_of(other), x.size(1), out.mutable_data_ptr(), x.scalar_type(), parameters, silu});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) { m.impl("winograd_convolution", &winograd_convolution); }

}  // namespace mobilevit::cpu

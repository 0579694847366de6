// mobilevit::inverted_residual on the CPU.
#include "checks.h"
#include "cpu/inverted_residual_kernel.h"
#include "cpu/map_memory.h"

#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

int64_t packed_total(const at::Tensor& packed, const InvertedResidualShape& shape) {
  const void* data = packed.const_data_ptr();
  if (packed.scalar_type() == at::kFloat) return InvertedResidualWeights<float>(data, shape).total;
  return InvertedResidualWeights<c10::BFloat16>(data, shape).total;
}

void check(const at::Tensor& x, const InvertedResidualShape& shape, bool residual) {
  check_positive("hidden_dim", shape.hidden);
  check_positive("out_channels", shape.out_channels);
  check_positive("stride", shape.stride);
  check_positive("dilation", shape.dilation);
  TORCH_CHECK_VALUE(
      !residual || (shape.stride == 1 && shape.in_channels == shape.out_channels),
      "residual: expected stride 1 and as many channels as x has, ", shape.in_channels, ", got stride ", shape.stride,
      " and out_channels ", shape.out_channels);
}

at::Tensor inverted_residual(
    const at::Tensor& x, const at::Tensor& packed, int64_t hidden_dim, int64_t out_channels, int64_t stride,
    int64_t dilation, bool residual) {
  check_storage_map("x", x);
  const InvertedResidualShape shape{x.size(0),  x.size(2),    x.size(3), x.size(1),
                                    hidden_dim, out_channels, stride,    dilation};
  check(x, shape, residual);
  check_packed(packed, x);
  const int64_t total = packed_total(packed, shape);
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", shape.in_channels, " channels, ",
      hidden_dim, " hidden ones and ", out_channels, " of the output, got ", packed.numel());
  const bool empty = x.numel() == 0;
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor out = empty_map(
      {shape.batch, out_channels, shape.height == 0 ? 0 : shape.out_height(), shape.width == 0 ? 0 : shape.out_width()},
      x.options());
  if (!empty) {
    run_inverted_residual(
        {shape, map.const_data_ptr(), out.mutable_data_ptr(), x.scalar_type(), packed.const_data_ptr(),
         packed.scalar_type(), residual});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) { m.impl("inverted_residual", &inverted_residual); }

}  // namespace mobilevit::cpu

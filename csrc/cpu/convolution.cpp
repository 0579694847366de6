// mobilevit::convolution on the CPU.
#include "checks.h"
#include "cpu/convolution_kernel.h"
#include "cpu/map_memory.h"

#include <torch/library.h>

#include <optional>

namespace mobilevit::cpu {
namespace {

int64_t packed_total(const at::Tensor& packed, const ConvolutionShape& shape) {
  const void* data = packed.const_data_ptr();
  if (packed.scalar_type() == at::kFloat) return ConvolutionWeights<float>(data, shape).total;
  return ConvolutionWeights<c10::BFloat16>(data, shape).total;
}

void check(const ConvolutionShape& shape) {
  check_positive("out_channels", shape.out_channels);
  check_positive("kernel_size", shape.kernel_size);
  check_positive("stride", shape.stride);
  check_positive("dilation", shape.dilation);
  TORCH_CHECK_VALUE(shape.padding >= 0, "padding: expected 0 or more, got ", shape.padding);
  const int64_t window = shape.dilation * (shape.kernel_size - 1) + 1;
  TORCH_CHECK_VALUE(
      std::min(shape.height, shape.width) + 2 * shape.padding >= window, "x: expected a padded map of at least ",
      window, " x ", window, " pixels, which the kernel covers, got ", shape.height, " x ", shape.width,
      " and padding ", shape.padding);
}

// The map as the kernel reads it. Windows are copied into bands whatever the strides; where many channels are apart,
// that would take longer than a copy of the map.
at::Tensor readable(const at::Tensor& x, int64_t kernel_size) {
  constexpr int64_t kFewChannels = 8;
  const bool gathered = x.stride(1) == 1 || x.size(1) <= kFewChannels;
  return kernel_size > 1 && gathered ? x : x.contiguous(at::MemoryFormat::ChannelsLast);
}

// A lone channel may have any stride.
ConvolutionInput input_of(const at::Tensor& map) {
  const int64_t channels = map.size(1);
  return {map.const_data_ptr(), channels,     map.stride(0), channels == 1 ? 1 : map.stride(1),
          map.stride(2),        map.stride(3)};
}

at::Tensor convolution(
    const at::Tensor& x, const at::Tensor& packed, int64_t out_channels, int64_t kernel_size, int64_t stride,
    int64_t padding, int64_t dilation, bool silu, const std::optional<at::Tensor>& beside,
    std::optional<at::ScalarType> out_dtype) {
  check_storage_map("x", x);
  check_beside(beside, x);
  const at::ScalarType result = out_dtype.value_or(x.scalar_type());
  check_storage_dtype("out_dtype", result);
  const int64_t in_channels = x.size(1) + (beside.has_value() ? beside->size(1) : 0);
  const ConvolutionShape shape{x.size(0),   x.size(2), x.size(3), in_channels, out_channels,
                               kernel_size, stride,    padding,   dilation};
  check(shape);
  check_packed(packed, x);
  const int64_t total = packed_total(packed, shape);
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", shape.in_channels, " channels, ",
      out_channels, " of the output and a kernel of ", kernel_size, " x ", kernel_size, ", got ", packed.numel());
  const at::Tensor map = readable(x, kernel_size);
  const at::Tensor other = beside.has_value() ? readable(*beside, kernel_size) : at::Tensor();
  const at::Tensor out =
      empty_map({shape.batch, out_channels, shape.out_height(), shape.out_width()}, x.options().dtype(result));
  if (out.numel() > 0) {
    run_convolution(
        {shape, input_of(map), other.defined() ? input_of(other) : ConvolutionInput{}, out.mutable_data_ptr(),
         x.scalar_type(), result, packed.const_data_ptr(), packed.scalar_type(), silu});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) { m.impl("convolution", &convolution); }

}  // namespace mobilevit::cpu

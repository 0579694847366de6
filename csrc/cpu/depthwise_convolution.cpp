// mobilevit::depthwise_convolution on the CPU.
#include "checks.h"
#include "cpu/depthwise_convolution_kernel.h"
#include "cpu/map_memory.h"

#include <torch/library.h>

namespace mobilevit::cpu {
namespace {

at::Tensor depthwise_convolution(
    const at::Tensor& x, const at::Tensor& packed, int64_t stride, int64_t dilation, bool silu) {
  check_storage_map("x", x);
  check_positive("stride", stride);
  check_positive("dilation", dilation);
  check_packed(packed, x);
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kFloat, "packed: expected torch.float32, got torch.bfloat16");
  const DepthwiseConvolutionShape shape{x.size(0), x.size(2), x.size(3), x.size(1), stride, dilation};
  const float* weights = packed.const_data_ptr<float>();
  const int64_t total = DepthwiseConvolutionWeights(weights, shape.channels).total;
  TORCH_CHECK_VALUE(
      packed.numel() == total, "packed: expected ", total, " elements for ", shape.channels, " channels, got ",
      packed.numel());
  const at::Tensor map = x.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor out = empty_map(
      {shape.batch, shape.channels, shape.height == 0 ? 0 : shape.out_height(),
       shape.width == 0 ? 0 : shape.out_width()},
      x.options());
  if (out.numel() > 0) {
    run_depthwise_convolution({shape, map.const_data_ptr(), out.mutable_data_ptr(), x.scalar_type(), weights, silu});
  }
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(mobilevit, CPU, m) { m.impl("depthwise_convolution", &depthwise_convolution); }

}  // namespace mobilevit::cpu

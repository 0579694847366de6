// Tensors as the maps of tokens that the kernels address.
#pragma once

#include "cpu/map_memory.h"
#include "cpu/token_grid.h"

#include <ATen/core/Tensor.h>

namespace mobilevit::cpu {

inline TokenGrid grid_of(const at::Tensor& map, at::IntArrayRef patch_size) {
  return {map.size(0), map.size(2), map.size(3), patch_size[0], patch_size[1]};
}

inline MapView view_of(const at::Tensor& map) {
  return {const_cast<void*>(map.const_data_ptr()), map.stride(0), map.stride(2), map.stride(3)};
}

// The map itself where its channels are adjacent (channels_last, or a slice of it), else a channels_last copy.
inline at::Tensor with_adjacent_channels(const at::Tensor& map) {
  const bool adjacent = map.stride(1) == 1 || map.size(1) == 1;
  return adjacent ? map : map.contiguous(at::MemoryFormat::ChannelsLast);
}

inline at::Tensor empty_map(const at::Tensor& like, int64_t channels) {
  return empty_map({like.size(0), channels, like.size(2), like.size(3)}, like.options());
}

// The dtype of sums and statistics: float64 for float64, else float32.
inline at::ScalarType accumulate_dtype(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace mobilevit::cpu

// Reading and writing the channels of consecutive tokens of one group, converted to the accumulation type.
#pragma once

#include "cpu/dtypes.h"
#include "cpu/simd.h"
#include "cpu/token_grid.h"

#include <c10/core/CPUAllocator.h>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Uninitialised memory for one thread, aligned for any vector.
template <typename A>
class Workspace {
 public:
  explicit Workspace(int64_t size) : memory_(c10::GetCPUAllocator()->allocate(size * sizeof(A))) {}

  // The next `size` elements, on a cache line of their own.
  A* take(int64_t size) {
    A* result = static_cast<A*>(memory_.get()) + used_;
    used_ += padded(size);
    return result;
  }
  static int64_t padded(int64_t size) { return round_up(size, 64 / sizeof(A)); }

 private:
  c10::DataPtr memory_;
  int64_t used_ = 0;
};

// A row of `channels` values: whole cache lines, of which the last one is room for a vector that begins inside; rows of
// this stride do not fall into the same few cache sets.
template <typename W>
int64_t padded_row(int64_t channels) {
  constexpr int64_t kLine = 64 / sizeof(W);
  return round_up(channels, kLine) + kLine;
}

// Zeros behind the inputs of rows that a product reads up to padded_inputs().
template <typename W>
inline void pad_rows(W* rows, int64_t count, int64_t inputs, int64_t stride) {
  const int64_t padded = padded_inputs<W>(inputs);
  for (int64_t i = 0; i < count && padded > inputs; ++i) {
    std::fill(rows + i * stride + inputs, rows + i * stride + padded, W(0));
  }
}

// One head (or all channels) of one group of tokens.
struct TokenSlice {
  const TokenGrid& grid;
  const MapView& map;
  int64_t b, p, channel, width;
};

// rows[i, 0 : width] = token first + i, for i < count.
template <typename T, typename A>
inline void load_tokens(const TokenSlice& slice, int64_t first, int64_t count, A* rows, int64_t row_stride) {
  const T* data = static_cast<const T*>(slice.map.data) + slice.channel;
  TokenCursor token(slice.grid, slice.map, slice.b, slice.p, first);
  for (int64_t i = 0; i < count; ++i, token.next()) {
    convert_row(data + token.offset(), rows + i * row_stride, slice.width);
  }
}

template <typename T, typename A>
inline void store_tokens(const TokenSlice& slice, int64_t first, int64_t count, const A* rows, int64_t row_stride) {
  T* data = static_cast<T*>(slice.map.data) + slice.channel;
  TokenCursor token(slice.grid, slice.map, slice.b, slice.p, first);
  for (int64_t i = 0; i < count; ++i, token.next()) {
    convert_row(rows + i * row_stride, data + token.offset(), slice.width);
  }
}

// The same for a map of any storage dtype.
inline void load_tokens(
    at::ScalarType dtype, const TokenSlice& slice, int64_t first, int64_t count, float* rows, int64_t row_stride) {
  with_storage_dtype(
      dtype, [&](auto element) { load_tokens<decltype(element)>(slice, first, count, rows, row_stride); });
}

inline void store_tokens(
    at::ScalarType dtype, const TokenSlice& slice, int64_t first, int64_t count, const float* rows,
    int64_t row_stride) {
  with_storage_dtype(
      dtype, [&](auto element) { store_tokens<decltype(element)>(slice, first, count, rows, row_stride); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

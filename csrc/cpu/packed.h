// Packing of B for gemm.h: panels of kPackedColumns columns, each [depth, kPackedColumns] row-major, the last one
// padded with zeros. Tokens are rows of A then, as they lie in an NHWC map, and weights are packed once.
#pragma once

#include "cpu/gemm.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

inline int64_t packed_size(int64_t columns, int64_t depth) { return round_up(columns, kPackedColumns) * depth; }

// One panel of pack_transposed: `count` rows of weight become columns.
template <typename From, typename To>
inline void pack_transposed_panel(
    const From* weight, int64_t weight_stride, int64_t count, int64_t depth, To* panel) {
  if constexpr (std::is_same_v<From, To>) {
    transpose(weight, weight_stride, panel, kPackedColumns, count, depth);
  } else {
    constexpr int64_t kBlock = 32;
    alignas(64) To block[kPackedColumns * kBlock];
    for (int64_t k = 0; k < depth; k += kBlock) {
      const int64_t width = std::min(kBlock, depth - k);
      for (int64_t i = 0; i < count; ++i) convert_row(weight + i * weight_stride + k, block + i * kBlock, width);
      transpose(block, kBlock, panel + k * kPackedColumns, kPackedColumns, count, width);
    }
  }
  if (count == kPackedColumns) return;
  for (int64_t k = 0; k < depth; ++k) {
    std::fill(panel + k * kPackedColumns + count, panel + (k + 1) * kPackedColumns, To(0));
  }
}

// B[k, n] = weight[n, k]: the weight of a linear layer, [columns, depth] row-major.
template <typename From, typename To>
inline void pack_transposed(
    const From* weight, int64_t weight_stride, int64_t columns, int64_t depth, To* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    const int64_t count = std::min(kPackedColumns, columns - first);
    pack_transposed_panel(weight + first * weight_stride, weight_stride, count, depth, packed + first * depth);
  }
}

// B[k, n] = matrix[k, n], [depth, columns] row-major.
template <typename From, typename To>
inline void pack(const From* matrix, int64_t matrix_stride, int64_t columns, int64_t depth, To* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    const int64_t count = std::min(kPackedColumns, columns - first);
    for (int64_t k = 0; k < depth; ++k) {
      To* row = packed + first * depth + k * kPackedColumns;
      convert_row(matrix + k * matrix_stride + first, row, count);
      std::fill(row + count, row + kPackedColumns, To(0));
    }
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Packing of B for gemm.h: panels of kPackedColumns columns, each [depth, kPackedColumns] row-major, the last one
// padded with zeros. Tokens are rows of A then, as they lie in an NHWC map, and weights are packed once.
#pragma once

#include "cpu/gemm.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

inline int64_t packed_size(int64_t columns, int64_t depth) { return round_up(columns, kPackedColumns) * depth; }

// B[k, n] = weight[n, k]: the weight of a linear layer, [columns, depth] row-major.
template <typename T>
inline void pack_transposed(const T* weight, int64_t weight_stride, int64_t columns, int64_t depth, T* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    const int64_t count = std::min(kPackedColumns, columns - first);
    T* panel = packed + first * depth;
    transpose(weight + first * weight_stride, weight_stride, panel, kPackedColumns, count, depth);
    if (count == kPackedColumns) continue;
    for (int64_t k = 0; k < depth; ++k) {
      std::fill(panel + k * kPackedColumns + count, panel + (k + 1) * kPackedColumns, T(0));
    }
  }
}

// B[k, n] = matrix[k, n], [depth, columns] row-major.
template <typename T>
inline void pack(const T* matrix, int64_t matrix_stride, int64_t columns, int64_t depth, T* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    const int64_t count = std::min(kPackedColumns, columns - first);
    for (int64_t k = 0; k < depth; ++k) {
      T* row = packed + first * depth + k * kPackedColumns;
      convert_row(matrix + k * matrix_stride + first, row, count);
      std::fill(row + count, row + kPackedColumns, T(0));
    }
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Packing of B for gemm.h: panels of kPackedColumns columns, each [padded depth, kPackedColumns] row-major, padded with
// zeros. Tokens are rows of A then, as they lie in an NHWC map, and weights are packed once.
#pragma once

#include "cpu/gemm.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

template <typename W>
int64_t packed_size(int64_t columns, int64_t depth) {
  return round_up(columns, kPackedColumns) * padded_inputs<W>(depth);
}

// The rows of a panel behind its depth.
template <typename W>
inline void pad_panel(int64_t depth, W* panel) {
  std::fill(panel + depth * kPackedColumns, panel + padded_inputs<W>(depth) * kPackedColumns, W(0));
}

// One panel of pack_transposed: `count` rows of weight become columns. Rows are too many streams for the hardware's
// prefetchers, so each block asks for the one below it, which is next in memory.
template <typename From, typename To>
inline void pack_transposed_panel(const From* weight, int64_t weight_stride, int64_t count, int64_t depth, To* panel) {
  constexpr int64_t kRows = 16, kDepth = 64 / sizeof(From);
  alignas(64) To converted[std::is_same_v<From, To> ? 1 : kRows * kDepth];
  for (int64_t first = 0; first < count; first += kRows) {
    const int64_t rows = std::min(kRows, count - first);
    for (int64_t k = 0; k < depth; k += kDepth) {
      const int64_t width = std::min(kDepth, depth - k);
      const From* block = weight + first * weight_stride + k;
      for (int64_t i = 0; i < rows; ++i) __builtin_prefetch(block + (i + kRows) * weight_stride);
      To* target = panel + k * kPackedColumns + first;
      if constexpr (std::is_same_v<From, To>) {
        transpose(block, weight_stride, target, kPackedColumns, rows, width);
      } else {
        for (int64_t i = 0; i < rows; ++i) convert_row(block + i * weight_stride, converted + i * kDepth, width);
        transpose(converted, kDepth, target, kPackedColumns, rows, width);
      }
    }
  }
  if (count == kPackedColumns) return;
  for (int64_t k = 0; k < depth; ++k) {
    std::fill(panel + k * kPackedColumns + count, panel + (k + 1) * kPackedColumns, To(0));
  }
}

// The same in bfloat16, whose pairs of inputs stay together.
inline void pack_transposed_panel(
    const c10::BFloat16* weight, int64_t weight_stride, int64_t count, int64_t depth, c10::BFloat16* panel) {
  const auto* pairs = reinterpret_cast<const float*>(weight);
  pack_transposed_panel(pairs, weight_stride / 2, count, depth / 2, reinterpret_cast<float*>(panel));
}

// B[k, n] = weight[n, k]: the weight of a linear layer, [columns, depth] row-major.
template <typename From, typename To>
inline void pack_transposed(const From* weight, int64_t weight_stride, int64_t columns, int64_t depth, To* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    const int64_t count = std::min(kPackedColumns, columns - first);
    To* panel = packed + first * padded_inputs<To>(depth);
    pack_transposed_panel(weight + first * weight_stride, weight_stride, count, depth, panel);
    pad_panel(depth, panel);
  }
}

template <typename W>
inline void pad_panels(int64_t columns, int64_t depth, W* packed) {
  for (int64_t first = 0; first < columns; first += kPackedColumns) {
    pad_panel(depth, packed + first * padded_inputs<W>(depth));
  }
}

// B[k, n] = matrix[k, n], [depth, columns] row-major. Rows are read whole, as they lie in memory.
template <typename From, typename To>
inline void pack(const From* matrix, int64_t matrix_stride, int64_t columns, int64_t depth, To* packed) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t first = 0; first < columns; first += kPackedColumns) {
      const int64_t count = std::min(kPackedColumns, columns - first);
      To* row = packed + first * padded_inputs<To>(depth) + k * kPackedColumns;
      convert_row(matrix + k * matrix_stride + first, row, count);
      if (count < kPackedColumns) std::fill(row + count, row + kPackedColumns, To(0));
    }
  }
  pad_panels(columns, depth, packed);
}

#if defined(CPU_CAPABILITY_AVX512_BF16)
// The same in bfloat16: rows 2k and 2k + 1 are pairs.
inline void pack(
    const c10::BFloat16* matrix, int64_t matrix_stride, int64_t columns, int64_t depth, c10::BFloat16* packed) {
  constexpr int64_t kLanes = Vec<float>::size();
  auto* panels = reinterpret_cast<Bfloat16Pair*>(packed);
  for (int64_t k = 0; k < depth; k += 2) {
    const c10::BFloat16 *first = matrix + k * matrix_stride, *second = first + matrix_stride;
    for (int64_t column = 0; column < columns; column += kLanes) {
      const int64_t panel = column - column % kPackedColumns;
      Bfloat16Pair* row = panels + panel * (padded_inputs<c10::BFloat16>(depth) / 2) + k / 2 * kPackedColumns;
      store_pairs(first + column, second + column, columns - column, row + column % kPackedColumns);
    }
  }
  pad_panels(columns, depth, packed);
}
#endif

}  // namespace mobilevit::cpu::CPU_CAPABILITY

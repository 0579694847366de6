// Small matrix products held in cache: C[m, n] (+)= sum_k A(m, k) * B[k, n].
//
// A is read one element at a time and may be strided or transposed; B (row-major or packed, see packed.h) and C
// (row-major) have columns on the vector lanes. A register tile of kRows x kVectors accumulators runs over k; a last,
// partial vector of columns is masked.
#pragma once

#include "cpu/packed_weights.h"
#include "cpu/simd.h"

#include <algorithm>
#include <array>
#include <utility>

namespace mobilevit::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int64_t kGemmRows = 12;  // 12 x 2 accumulators of the 32 registers
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int64_t kGemmRows = 6;  // 6 x 2 of 16
#else
constexpr int64_t kGemmRows = 4;
#endif
constexpr int64_t kGemmVectors = 2;

// Columns that one pass of the kernel covers.
template <typename T>
constexpr int64_t kPanel = kGemmVectors * Vec<T>::size();

template <typename T>
struct StridedMatrix {
  const T* data;
  int64_t row_stride;
  int64_t column_stride;
};

// B[k, n], kPackedColumns columns at a time: panels follow each other at panel_stride, rows of one at row_stride.
template <typename T>
struct PanelMatrix {
  const T* data;
  int64_t row_stride;
  int64_t panel_stride;

  const T* at(int64_t column) const { return data + column / kPackedColumns * panel_stride + column % kPackedColumns; }
  static PanelMatrix row_major(const T* data, int64_t row_stride) { return {data, row_stride, kPackedColumns}; }
  static PanelMatrix packed(const T* data, int64_t depth) { return {data, kPackedColumns, depth * kPackedColumns}; }
};

// What happens to finished values of C (at a row, and from a column on) before they are stored; kAccumulate adds the C
// in memory, at the end: sums over several calls are sums of short sums, which round less.
struct Overwrite {
  static constexpr bool kAccumulate = false;
  template <typename T>
  Vec<T> operator()(int64_t /*row*/, int64_t /*column*/, const Vec<T>& value) const {
    return value;
  }
};

struct Accumulate : Overwrite {
  static constexpr bool kAccumulate = true;
};

// The address of A(m, 0): every third row has a pointer of its own, the two after it are reached by index.
template <typename T, int kRows, bool kAdjacentRows>
struct RowPointers {
  static constexpr int kBases = (kRows + 2) / 3;
  const T* base[kBases];
  int64_t stride;

  RowPointers(const T* a, int64_t row_stride) : stride(row_stride) {
    for (int i = 0; i < kBases; ++i) base[i] = a + 3 * i * row_stride;
  }
  T at(int row, int64_t k_offset) const {
    if constexpr (kAdjacentRows) return base[0][k_offset + row];
    return base[row / 3][k_offset + (row % 3) * stride];
  }
};

// Loads and stores whole vectors, or the first `lanes` of one.
struct WholeVectors {
  template <typename T>
  Vec<T> load(const T* p) const {
    return Vec<T>::loadu(p);
  }
  template <typename T>
  void store(const Vec<T>& value, T* p) const {
    value.store(p);
  }
};

struct PartialVector {
  int lanes;

  template <typename T>
  Vec<T> load(const T* p) const {
    return Vec<T>::loadu(p, lanes);
  }
  template <typename T>
  void store(const Vec<T>& value, T* p) const {
    value.store(p, lanes);
  }
};

// The depth of a product in pieces of equal length: the columns of A of a piece begin at its offset, those of a plain
// matrix at 0; the rows of B follow each other. Long pieces have sums of their own, which round less.
struct OnePiece {
  static constexpr int64_t count = 1;
  static constexpr bool kSeparateSums = false;

  int64_t offset(int64_t /*piece*/) const { return 0; }
};

struct Pieces {
  static constexpr bool kSeparateSums = true;
  static constexpr int64_t kLong = 32;

  int64_t count;
  const int64_t* offsets;

  int64_t offset(int64_t piece) const { return offsets[piece]; }
};

// Operands of a product, and where its result goes.
template <typename T, typename Depth = OnePiece>
struct Product {
  StridedMatrix<T> a;
  PanelMatrix<T> b;
  T* c;
  int64_t c_stride;
  int64_t depth;  // of each piece
  Depth pieces = {};
};

template <typename T, int kRows, int kVectors>
inline void add_tile(Vec<T> (&sum)[kRows][kVectors], const Vec<T> (&other)[kRows][kVectors]) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[m][v] = sum[m][v] + other[m][v];
  }
}

template <int kRows, int kVectors, bool kAdjacentRows, typename T, typename Depth, typename Columns, typename Epilogue>
inline void gemm_tile(
    const Product<T, Depth>& product, int64_t row, int64_t column, const Columns& columns, const Epilogue& epilogue) {
  constexpr int64_t kLanes = Vec<T>::size();
  const int64_t b_stride = product.b.row_stride, c_stride = product.c_stride;
  T* c = product.c + row * c_stride + column;
  Vec<T> sum[kRows][kVectors];
  fill_tile(sum, T(0));
  [[maybe_unused]] Vec<T> total[kRows][kVectors];
  if constexpr (Depth::kSeparateSums) fill_tile(total, T(0));
  const StridedMatrix<T>& a = product.a;
  const RowPointers<T, kRows, kAdjacentRows> rows(a.data + row * a.row_stride, a.row_stride);
  const T* b = product.b.at(column);
  for (int64_t piece = 0; piece < product.pieces.count; ++piece) {
    int64_t k_offset = product.pieces.offset(piece);
    for (int64_t k = 0; k < product.depth; ++k, k_offset += a.column_stride, b += b_stride) {
      Vec<T> b_row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) b_row[v] = columns.load(b + v * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const Vec<T> scalar(rows.at(m, k_offset));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = at::vec::fmadd(scalar, b_row[v], sum[m][v]);
      }
    }
    if constexpr (Depth::kSeparateSums) {
      if (product.depth < Depth::kLong) continue;
      add_tile(total, sum);
      fill_tile(sum, T(0));
    }
  }
  if constexpr (Depth::kSeparateSums) add_tile(sum, total);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      T* target = c + m * c_stride + v * kLanes;
      const Vec<T> value = Epilogue::kAccumulate ? columns.load(target) + sum[m][v] : sum[m][v];
      columns.store(epilogue.template operator()<T>(row + m, column + v * kLanes, value), target);
    }
  }
}

// Calls function(std::integral_constant<int, rows>) for a row count only known at run time.
template <int kRows, typename Function>
inline void with_rows(int64_t rows, const Function& function) {
  if (rows == kRows) {
    function(std::integral_constant<int, kRows>());
  } else if constexpr (kRows > 1) {
    with_rows<kRows - 1>(rows, function);
  }
}

// A block of rows against the columns [column, end), panel after panel.
template <int kRows, bool kAdjacentRows, typename T, typename Depth, typename Epilogue>
inline void gemm_row_block(
    const Product<T, Depth>& product, int64_t row, int64_t column, int64_t end, const Epilogue& epilogue) {
  constexpr int64_t kLanes = Vec<T>::size();
  for (; column + kPanel<T> <= end; column += kPanel<T>) {
    gemm_tile<kRows, kGemmVectors, kAdjacentRows>(product, row, column, WholeVectors(), epilogue);
  }
  for (; column + kLanes <= end; column += kLanes) {
    gemm_tile<kRows, 1, kAdjacentRows>(product, row, column, WholeVectors(), epilogue);
  }
  if (column < end) {
    const PartialVector access{static_cast<int>(end - column)};
    gemm_tile<kRows, 1, kAdjacentRows>(product, row, column, access, epilogue);
  }
}

// All rows against the columns [begin, end), block after block.
template <typename T, typename Depth, typename Epilogue>
inline void gemm_columns(
    const Product<T, Depth>& product, int64_t rows, int64_t begin, int64_t end, const Epilogue& epilogue) {
  static_assert(kPackedColumns % kPanel<T> == 0);
  // Blocks as equal as possible: 16 rows run as 8 + 8, not as 12 + 4.
  const int64_t blocks = (rows + kGemmRows - 1) / kGemmRows;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t block_rows = (rows - row + blocks - block - 1) / (blocks - block);
    with_rows<static_cast<int>(kGemmRows)>(block_rows, [&](auto count) {
      constexpr int kRows = decltype(count)::value;
      if (product.a.row_stride == 1) {
        gemm_row_block<kRows, true>(product, row, begin, end, epilogue);
      } else {
        gemm_row_block<kRows, false>(product, row, begin, end, epilogue);
      }
    });
    row += block_rows;
  }
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns]. Rows are the outer loop: A is read from memory once, B again
// and again from the cache.
template <typename T, typename Epilogue>
inline void gemm(
    int64_t rows, int64_t columns, int64_t depth, const StridedMatrix<T>& a, const PanelMatrix<T>& b, T* c,
    int64_t c_stride, const Epilogue& epilogue) {
  gemm_columns(Product<T>{a, b, c, c_stride, depth}, rows, 0, columns, epilogue);
}

// The same with panels of B as the outer loop: B is read from memory once, A again and again from the cache.
template <typename T, typename Epilogue>
inline void gemm_panels(
    int64_t rows, int64_t columns, int64_t depth, const StridedMatrix<T>& a, const PanelMatrix<T>& b, T* c,
    int64_t c_stride, const Epilogue& epilogue) {
  const Product<T> product{a, b, c, c_stride, depth};
  for (int64_t column = 0; column < columns; column += kPackedColumns) {
    gemm_columns(product, rows, column, std::min(column + kPackedColumns, columns), epilogue);
  }
}

// The same with B row-major.
template <typename T, typename Epilogue>
inline void gemm(
    int64_t rows, int64_t columns, int64_t depth, const StridedMatrix<T>& a, const T* b, int64_t b_stride, T* c,
    int64_t c_stride, const Epilogue& epilogue) {
  gemm(rows, columns, depth, a, PanelMatrix<T>::row_major(b, b_stride), c, c_stride, epilogue);
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

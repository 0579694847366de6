// Small matrix products held in cache: C[m, n] (+)= sum_k A(m, k) * B[k, n].
//
// A is read one element at a time and may be transposed; B (row-major or packed, see packed.h) and C (row-major) have
// columns on the vector lanes. A register tile of kRows x kVectors accumulators runs over k; a last, partial vector of
// columns is masked. Elements of A and B are numbers or pairs of bfloat16 (operands.h).
#pragma once

#include "cpu/operands.h"
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
constexpr int64_t kPanel = kGemmVectors * Vec<sum_t<T>>::size();

// The elements (m, k) of A at [m * stride + k]. In the rows of a tile every third one has a pointer of its own, the two
// after it are reached by index.
template <typename T>
struct RowMajor {
  const T* data;
  int64_t stride;

  int64_t depth_step() const { return 1; }

  template <int kRows>
  struct Tile {
    const T* base[(kRows + 2) / 3];
    int64_t stride;

    Tile(const RowMajor& matrix, int64_t row) : stride(matrix.stride) {
      for (int64_t i = 0; i < (kRows + 2) / 3; ++i) base[i] = matrix.data + (row + 3 * i) * stride;
    }
    T at(int row, int64_t k_offset) const { return base[row / 3][k_offset + (row % 3) * stride]; }
  };
};

// The elements (m, k) of A at [k * stride + m].
template <typename T>
struct ColumnMajor {
  const T* data;
  int64_t stride;

  int64_t depth_step() const { return stride; }

  template <int kRows>
  struct Tile {
    const T* base;

    Tile(const ColumnMajor& matrix, int64_t row) : base(matrix.data + row) {}
    T at(int row, int64_t k_offset) const { return base[k_offset + row]; }
  };
};

// Rows of a packed panel: pairs come in whole tiles of the matrix unit.
template <typename T>
constexpr int64_t padded_depth(int64_t depth) {
  return std::is_same_v<T, Bfloat16Pair> ? round_up(depth, kTileInputs / 2) : depth;
}

// B[k, n], kPackedColumns columns at a time: panels follow each other at panel_stride, rows of one at row_stride.
// kPadded: whole vectors may be read.
template <typename T, bool kPadded = true>
struct PanelMatrix {
  using Element = T;
  static constexpr bool kPaddedRows = kPadded;

  const T* data;
  int64_t row_stride;
  int64_t panel_stride;

  const T* at(int64_t column) const { return data + column / kPackedColumns * panel_stride + column % kPackedColumns; }
  static PanelMatrix row_major(const T* data, int64_t row_stride) { return {data, row_stride, kPackedColumns}; }
  static PanelMatrix packed(const T* data, int64_t depth) {
    return {data, kPackedColumns, padded_depth<T>(depth) * kPackedColumns};
  }
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

// Vectors of B and C: whole, or the first `lanes` of one.
struct WholeVectors {
  template <typename T>
  auto operand(const T* p) const {
    return Operands<T>::load(p);
  }
  template <typename A, typename T>
  Vec<A> load(const T* p) const {
    return load_as<A>(p);
  }
  template <typename A, typename T>
  void store(const Vec<A>& value, T* p) const {
    store_as(value, p);
  }
};

struct PartialVector {
  int lanes;

  template <typename T>
  auto operand(const T* p) const {
    return Operands<T>::load(p, lanes);
  }
  template <typename A, typename T>
  Vec<A> load(const T* p) const {
    return load_as<A>(p, lanes);
  }
  template <typename A, typename T>
  void store(const Vec<A>& value, T* p) const {
    store_as(value, p, lanes);
  }
};

// The same where whole vectors of B may be read.
struct PaddedVector : PartialVector {
  template <typename T>
  auto operand(const T* p) const {
    return Operands<T>::load(p);
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

// Factors of a product, and where its result goes, in the type of sums or of a map.
template <typename A, typename B, typename C, typename Depth = OnePiece>
struct Product {
  A a;
  B b;
  C* c;
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

// A function of its own, whatever surrounds it: the loop needs all sums and pointers in registers.
template <
    int kRows, int kVectors, typename Left, typename B, typename C, typename Depth, typename Columns, typename Epilogue>
C10_NOINLINE void gemm_tile(
    const Product<Left, B, C, Depth>& product, int64_t row, int64_t column, const Columns& columns,
    const Epilogue& epilogue) {
  using T = typename B::Element;
  using A = sum_t<T>;
  using Factors = Operands<T>;
  constexpr int64_t kLanes = Vec<A>::size();
  const int64_t b_stride = product.b.row_stride, c_stride = product.c_stride;
  C* c = product.c + row * c_stride + column;
  Vec<A> sum[kRows][kVectors];
  fill_tile(sum, A(0));
  [[maybe_unused]] Vec<A> total[kRows][kVectors];
  if constexpr (Depth::kSeparateSums) fill_tile(total, A(0));
  const typename Left::template Tile<kRows> rows(product.a, row);
  const int64_t step = product.a.depth_step();
  const T* b = product.b.at(column);
  for (int64_t piece = 0; piece < product.pieces.count; ++piece) {
    int64_t k_offset = product.pieces.offset(piece);
#pragma GCC unroll kDepthUnroll
    for (int64_t k = 0; k < product.depth; ++k, k_offset += step, b += b_stride) {
      typename Factors::Vector b_row[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) b_row[v] = columns.operand(b + v * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        const auto scalar = Factors::broadcast(rows.at(m, k_offset));
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[m][v] = Factors::multiply_add(scalar, b_row[v], sum[m][v]);
      }
    }
    if constexpr (Depth::kSeparateSums) {
      if (product.depth < Depth::kLong) continue;
      add_tile(total, sum);
      fill_tile(sum, A(0));
    }
  }
  if constexpr (Depth::kSeparateSums) add_tile(sum, total);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      C* target = c + m * c_stride + v * kLanes;
      const Vec<A> value = Epilogue::kAccumulate ? columns.template load<A>(target) + sum[m][v] : sum[m][v];
      columns.store(epilogue.template operator()<A>(row + m, column + v * kLanes, value), target);
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
template <int kRows, typename A, typename B, typename C, typename Depth, typename Epilogue>
inline void gemm_row_block(
    const Product<A, B, C, Depth>& product, int64_t row, int64_t column, int64_t end, const Epilogue& epilogue) {
  constexpr int64_t kColumns = kPanel<typename B::Element>, kLanes = kColumns / kGemmVectors;
  using LastVector = std::conditional_t<B::kPaddedRows, PaddedVector, PartialVector>;
  for (; column + kColumns <= end; column += kColumns) {
    gemm_tile<kRows, kGemmVectors>(product, row, column, WholeVectors(), epilogue);
  }
  for (; column < end; column += kLanes) {
    const LastVector access{static_cast<int>(std::min(kLanes, end - column))};
    gemm_tile<kRows, 1>(product, row, column, access, epilogue);
  }
}

// All rows against the columns [begin, end), block after block.
template <typename A, typename B, typename C, typename Depth, typename Epilogue>
inline void gemm_columns(
    const Product<A, B, C, Depth>& product, int64_t rows, int64_t begin, int64_t end, const Epilogue& epilogue) {
  static_assert(kPackedColumns % kPanel<typename B::Element> == 0);
  // Blocks as equal as possible: 16 rows run as 8 + 8, not as 12 + 4.
  const int64_t blocks = (rows + kGemmRows - 1) / kGemmRows;
  const int64_t smaller = blocks == 0 ? 0 : rows / blocks, larger = rows - smaller * blocks;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t block_rows = block < larger ? smaller + 1 : smaller;
    with_rows<static_cast<int>(kGemmRows)>(
        block_rows, [&](auto count) { gemm_row_block<decltype(count)::value>(product, row, begin, end, epilogue); });
    row += block_rows;
  }
}

// C[rows, columns] (+)= A[rows, depth] B[depth, columns]. Rows are the outer loop: A is read from memory once, B again
// and again from the cache.
template <typename A, typename B, typename C, typename Epilogue>
inline void gemm(
    int64_t rows, int64_t columns, int64_t depth, const A& a, const B& b, C* c, int64_t c_stride,
    const Epilogue& epilogue) {
  gemm_columns(Product<A, B, C>{a, b, c, c_stride, depth}, rows, 0, columns, epilogue);
}

// The same with panels of B as the outer loop: B is read from memory once, A again and again from the cache.
template <typename A, typename B, typename C, typename Epilogue>
inline void gemm_panels(
    int64_t rows, int64_t columns, int64_t depth, const A& a, const B& b, C* c, int64_t c_stride,
    const Epilogue& epilogue) {
  const Product<A, B, C> product{a, b, c, c_stride, depth};
  for (int64_t column = 0; column < columns; column += kPackedColumns) {
    gemm_columns(product, rows, column, std::min(column + kPackedColumns, columns), epilogue);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

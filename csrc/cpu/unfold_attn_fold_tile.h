// Register tiles of the products of unfold_attn_fold: rows of scalars times vectors of B, numbers or pairs of bfloat16
// (operands.h), and what each caller does with the finished sums.
#pragma once

#include "cpu/operands.h"

#include <algorithm>
#include <utility>

namespace mobilevit::cpu::CPU_CAPABILITY {

// kWideVectors: of a tile's columns at most, each of which is in a register beside the accumulators.
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kTileVectors = 24;  // accumulators of the 32 registers
constexpr int kMaxTileRows = 16;
constexpr int kWideVectors = 4;
#elif defined(CPU_CAPABILITY_AVX2)
constexpr int kTileVectors = 12;  // of 16
constexpr int kMaxTileRows = 12;
constexpr int kWideVectors = 3;
#else
constexpr int kTileVectors = 8;
constexpr int kMaxTileRows = 8;
constexpr int kWideVectors = 4;
#endif

// Rows of a tile that is `vectors` wide.
constexpr int tile_rows(int vectors) { return std::min(kMaxTileRows, kTileVectors / vectors); }

template <typename A>
constexpr int64_t kLanes = Vec<A>::size();

template <typename A>
constexpr int64_t vectors_of(int64_t columns) {
  return (columns + kLanes<A> - 1) / kLanes<A>;
}

// Calls function(std::integral_constant<int, count>) for a count of 1 to kMax that is only known at run time.
template <int kMax, typename Function>
C10_ALWAYS_INLINE void with_count(int64_t count, const Function& function) {
  if constexpr (kMax > 1) {
    if (count < kMax) return with_count<kMax - 1>(count, function);
  }
  function(std::integral_constant<int, kMax>());
}

template <int kMax>
constexpr int64_t row_blocks(int64_t rows) {
  return (rows + kMax - 1) / kMax;
}

// Calls function(std::integral_constant<int, rows>, first) for blocks of at most kMax rows, as equal as possible: 16
// rows run as 8 + 8, not as 12 + 4.
template <int kMax, typename Function>
inline void for_row_blocks(int64_t rows, const Function& function) {
  const int64_t blocks = row_blocks<kMax>(rows);
  const int64_t smaller = blocks == 0 ? 0 : rows / blocks, larger = rows - smaller * blocks;
  for (int64_t block = 0, row = 0; block < blocks; ++block) {
    const int64_t count = block < larger ? smaller + 1 : smaller;
    with_count<kMax>(count, [&](auto block_rows) { function(block_rows, row); });
    row += count;
  }
}

// How a matrix of scalars lies in memory: element (m, k) at [m * stride + k], or transposed at [k * stride + m].
enum class Scalars { kRows, kColumns };

// The scalars (m, k) for the rows of a tile. Every third row has a pointer of its own, the two after it are reached by
// index.
template <typename F, Scalars kLayout, int kRows>
class ScalarCursor {
  static constexpr int kBases = kLayout == Scalars::kRows ? (kRows + 2) / 3 : 1;

 public:
  C10_ALWAYS_INLINE ScalarCursor(const F* scalars, int64_t stride) : stride_(stride) {
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) base_[i] = scalars + 3 * i * stride;
  }
  C10_ALWAYS_INLINE typename Operands<F>::Vector at(int row) const {
    if constexpr (kLayout == Scalars::kColumns) return Operands<F>::broadcast(base_[0][row]);
    return Operands<F>::broadcast(base_[row / 3][row % 3 * stride_]);
  }
  C10_ALWAYS_INLINE void next() {
#pragma GCC unroll 8
    for (int i = 0; i < kBases; ++i) base_[i] += kLayout == Scalars::kRows ? 1 : stride_;
  }

 private:
  const F* base_[kBases];
  int64_t stride_;
};

// sums[m][v] += sum_k scalars(m, k) * b[k, v] for k < depth.
template <Scalars kLayout, typename F, int kRows, int kVectors>
C10_ALWAYS_INLINE void multiply_add(
    Vec<sum_t<F>> (&sums)[kRows][kVectors], const F* scalars, int64_t scalar_stride, const F* b, int64_t b_stride,
    int64_t depth) {
  ScalarCursor<F, kLayout, kRows> cursor(scalars, scalar_stride);
#pragma GCC unroll kDepthUnroll
  for (int64_t k = 0; k < depth; ++k, cursor.next(), b += b_stride) {
    typename Operands<F>::Vector b_row[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) b_row[v] = Operands<F>::load(b + v * kLanes<sum_t<F>>);
#pragma GCC unroll 24
    for (int m = 0; m < kRows; ++m) {
      const auto scalar = cursor.at(m);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[m][v] = Operands<F>::multiply_add(scalar, b_row[v], sums[m][v]);
    }
  }
}

// A matrix of scalars, a matrix B of vectors, and the length of their common dimension.
template <typename F>
struct TileProduct {
  const F* scalars;
  int64_t scalar_stride;
  const F* b;
  int64_t b_stride;
  int64_t depth;
};

// One tile: rows [first, first + kRows) of the product, which finished(first, sums) takes. A function of its own,
// whatever surrounds it: the loop needs all pointers in registers.
template <Scalars kLayout, int kRows, int kVectors, typename F, typename Finished>
C10_NOINLINE void multiply_tile(const TileProduct<F>& product, int64_t first, const Finished& finished) {
  Vec<sum_t<F>> sums[kRows][kVectors];
  fill_tile(sums, sum_t<F>(0));
  const F* scalars = product.scalars + first * (kLayout == Scalars::kRows ? product.scalar_stride : 1);
  multiply_add<kLayout>(sums, scalars, product.scalar_stride, product.b, product.b_stride, product.depth);
  finished(first, sums);
}

// Calls function(m, v, sum) for every vector of a tile.
template <typename A, int kRows, int kVectors, typename Function>
C10_ALWAYS_INLINE void for_each_sum(Vec<A> (&sums)[kRows][kVectors], const Function& function) {
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) function(m, v, sums[m][v]);
  }
}

// All rows of a product that is kVectors wide; between() runs once per tile.
template <Scalars kLayout, int kVectors, typename F, typename Finished, typename Between>
inline void multiply(int64_t rows, const TileProduct<F>& product, const Finished& finished, const Between& between) {
  for_row_blocks<tile_rows(kVectors)>(rows, [&](auto count, int64_t first) {
    between();
    multiply_tile<kLayout, decltype(count)::value, kVectors>(product, first, finished);
  });
}

template <Scalars kLayout, int kVectors, typename F, typename Finished>
inline void multiply(int64_t rows, const TileProduct<F>& product, const Finished& finished) {
  multiply<kLayout, kVectors>(rows, product, finished, [] {});
}

// The same for any number of columns of B, in groups of up to kWideVectors: finished(row, column, sum) takes each
// vector.
template <Scalars kLayout, typename F, typename Finished>
inline void multiply_wide(int64_t rows, int64_t columns, const TileProduct<F>& product, const Finished& finished) {
  using A = sum_t<F>;
  const int64_t vectors = vectors_of<A>(columns), groups = (vectors + kWideVectors - 1) / kWideVectors;
  for (int64_t group = 0, vector = 0; group < groups; ++group) {
    const int64_t count = (vectors - vector + groups - group - 1) / (groups - group);
    const int64_t column = vector * kLanes<A>;
    TileProduct<F> part = product;
    part.b += column;
    with_count<kWideVectors>(count, [&](auto group_vectors) {
      multiply<kLayout, decltype(group_vectors)::value>(rows, part, [finished, column](int64_t first, auto& sums) {
        for_each_sum(sums, [&](int m, int v, const Vec<A>& sum) { finished(first + m, column + v * kLanes<A>, sum); });
      });
    });
    vector += count;
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

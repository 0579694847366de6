// The matrix products of one thread: those of gemm.h, of pairs of bfloat16 on the matrix unit where there is one. Its
// tiles are whole: a product of one piece reads zeros in A and finite numbers in B up to padded_depth().
#pragma once

#include "cpu/capability.h"
#include "cpu/gemm.h"
#if defined(CPU_CAPABILITY_AVX512_BF16)
#include "cpu/matrix_unit.h"

#include <vector>
#endif

namespace mobilevit::cpu::CPU_CAPABILITY {

// F: of the factors.
template <typename F>
class Products {
 public:
  // What work between two products calls every few hundred cycles.
  static void keep_ready() {}

  // c[rows, columns] (+)= a[rows, depth] b[depth, columns]; the panels of b are the outer loop.
  template <typename A, typename B, typename C, typename Epilogue>
  void operator()(
      int64_t rows, int64_t columns, int64_t depth, const A& a, const B& b, C* c, int64_t c_stride,
      const Epilogue& epilogue) {
    gemm_panels(rows, columns, depth, a, b, c, c_stride, epilogue);
  }

  // All rows against the columns [begin, end).
  template <typename A, typename B, typename C, typename Depth, typename Epilogue>
  void operator()(
      const Product<A, B, C, Depth>& product, int64_t rows, int64_t begin, int64_t end, const Epilogue& epilogue) {
    gemm_columns(product, rows, begin, end, epilogue);
  }
};

#if defined(CPU_CAPABILITY_AVX512_BF16)
template <>
class Products<Bfloat16Pair> {
  using F = Bfloat16Pair;

 public:
  static void keep_ready() { MatrixUnit::keep_awake(); }

  template <typename A, typename B, typename C, typename Epilogue>
  void operator()(
      int64_t rows, int64_t columns, int64_t depth, const A& a, const B& b, C* c, int64_t c_stride,
      const Epilogue& epilogue) {
    if (!has_unit_) return gemm_panels(rows, columns, depth, a, b, c, c_stride, epilogue);
    (*this)(Product<A, B, C>{a, b, c, c_stride, depth}, rows, 0, columns, epilogue);
  }

  template <typename B, typename C, typename Depth, typename Epilogue>
  void operator()(
      const Product<RowMajor<F>, B, C, Depth>& product, int64_t rows, int64_t begin, int64_t end,
      const Epilogue& epilogue) {
    if (!has_unit_) return gemm_columns(product, rows, begin, end, epilogue);
    unit_.multiply(product, rows, begin, end, epilogue);
  }

  // The matrix unit reads rows: a block of them at a time is transposed.
  template <typename B, typename C, typename Epilogue>
  void operator()(
      const Product<ColumnMajor<F>, B, C>& product, int64_t rows, int64_t begin, int64_t end,
      const Epilogue& epilogue) {
    static_assert(std::is_empty_v<Epilogue>, "the epilogue would see rows of a block");
    if (!has_unit_) return gemm_columns(product, rows, begin, end, epilogue);
    constexpr int64_t kBlockRows = 64;
    const int64_t stride = padded_depth<F>(product.depth) + kLine;
    transposed_.resize(kBlockRows * stride);
    for (int64_t i = 0; i < kBlockRows; ++i) {
      F* row = transposed_.data() + i * stride;
      std::fill(row + product.depth, row + padded_depth<F>(product.depth), F{});
    }
    for (int64_t row = 0; row < rows; row += kBlockRows) {
      const int64_t count = std::min(kBlockRows, rows - row);
      // A pair moves as the float32 number of its bits.
      transpose(
          reinterpret_cast<const float*>(product.a.data + row), product.a.stride,
          reinterpret_cast<float*>(transposed_.data()), stride, product.depth, count);
      const RowMajor<F> a{transposed_.data(), stride};
      C* c = product.c + row * product.c_stride;
      unit_.multiply(
          Product<RowMajor<F>, B, C>{a, product.b, c, product.c_stride, product.depth}, count, begin, end, epilogue);
    }
  }

 private:
  static constexpr int64_t kLine = 16;  // keeps rows out of the same few cache sets

  const bool has_unit_ = has_matrix_unit();
  MatrixUnit unit_;
  std::vector<F> transposed_;  // [kBlockRows, padded depth]
};
#endif

}  // namespace mobilevit::cpu::CPU_CAPABILITY

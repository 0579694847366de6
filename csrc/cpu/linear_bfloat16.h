// Linear layers with bfloat16 products and float32 sums: with products of pairs where the processor has them, else
// through torch's brgemm.
#pragma once

#include "cpu/linear.h"
#include "cpu/products.h"

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Rows of inputs are padded with zeros as those of the weight: padded_inputs().
#if defined(CPU_CAPABILITY_AVX512_BF16)
template <>
class LinearRunner<c10::BFloat16> {
 public:
  static int64_t layer_rows() { return has_matrix_unit() ? kMaxLayerRows : 48; }

  template <typename C, typename Epilogue>
  void operator()(
      const PackedLinear<c10::BFloat16>& layer, int64_t rows, const c10::BFloat16* a, int64_t a_stride, C* c,
      int64_t c_stride, const Epilogue& epilogue) {
    const int64_t depth = pairs(layer.inputs);
    products_(rows, layer.outputs, depth, rows_of(a, a_stride), weight_of(layer), c, c_stride, epilogue);
  }

  // The outputs [first, first + kPackedColumns) alone, with inputs in pieces of an even length.
  template <typename C, typename Epilogue>
  void panel(
      const PackedLinear<c10::BFloat16>& layer, int64_t first, const Pieces& pieces, int64_t rows,
      const c10::BFloat16* a, int64_t a_stride, C* c, int64_t c_stride, const Epilogue& epilogue) {
    using Factors = Product<RowMajor<Bfloat16Pair>, PanelMatrix<Bfloat16Pair>, C, PairPieces>;
    const int64_t depth = pairs(layer.inputs) / pieces.count;
    const Factors product{rows_of(a, a_stride), weight_of(layer), c, c_stride, depth, {pieces}};
    products_(product, rows, first, std::min(first + kPackedColumns, layer.outputs), epilogue);
  }

 private:
  // Pieces of inputs that are read in pairs.
  struct PairPieces : Pieces {
    int64_t offset(int64_t piece) const { return Pieces::offset(piece) / 2; }
  };

  static int64_t pairs(int64_t inputs) { return paired_inputs<c10::BFloat16>(inputs) / 2; }
  static RowMajor<Bfloat16Pair> rows_of(const c10::BFloat16* a, int64_t a_stride) { return {factors(a), a_stride / 2}; }
  static PanelMatrix<Bfloat16Pair> weight_of(const PackedLinear<c10::BFloat16>& layer) {
    return PanelMatrix<Bfloat16Pair>::packed(factors(layer.weight), pairs(layer.inputs));
  }

  Products<Bfloat16Pair> products_;
};
#else
// brgemm leaves a panel of outputs at a time in float32, then their epilogue runs on the way to c.
template <>
class LinearRunner<c10::BFloat16> {
 public:
  LinearRunner() = default;
  LinearRunner(const LinearRunner&) = delete;
  LinearRunner& operator=(const LinearRunner&) = delete;
  ~LinearRunner() { at::native::cpublas::brgemm_release(); }

  static int64_t layer_rows() { return 48; }

  template <typename C, typename Epilogue>
  void operator()(
      const PackedLinear<c10::BFloat16>& layer, int64_t rows, const c10::BFloat16* a, int64_t a_stride, C* c,
      int64_t c_stride, const Epilogue& epilogue) {
    const int64_t start = 0;
    for (int64_t first = 0; first < layer.outputs; first += kPackedColumns) {
      panel(layer, first, {1, &start}, rows, a, a_stride, c, c_stride, epilogue);
    }
  }

  // The outputs [first, first + kPackedColumns) alone, with inputs in pieces of an even length.
  template <typename C, typename Epilogue>
  void panel(
      const PackedLinear<c10::BFloat16>& layer, int64_t first, const Pieces& pieces, int64_t rows,
      const c10::BFloat16* a, int64_t a_stride, C* c, int64_t c_stride, const Epilogue& epilogue) {
    for_row_blocks(rows, [&](int64_t row, int64_t count) {
      multiply(layer, first, pieces, count, a + row * a_stride, a_stride);
      finish(row, count, first, std::min(kPackedColumns, layer.outputs - first), c, c_stride, epilogue);
    });
  }

 private:
  static constexpr int64_t kMaxRows = 64;

  // Calls function(first row, number of rows) for blocks of rows whose panel_ fits.
  template <typename Function>
  static void for_row_blocks(int64_t rows, const Function& function) {
    for (int64_t row = 0; row < rows; row += kMaxRows) function(row, std::min(kMaxRows, rows - row));
  }

  // panel_ = a weight^T for a panel of outputs.
  void multiply(
      const PackedLinear<c10::BFloat16>& layer, int64_t first, const Pieces& pieces, int64_t rows,
      const c10::BFloat16* a, int64_t a_stride) {
    const int64_t depth = paired_inputs<c10::BFloat16>(layer.inputs) / pieces.count;
    const c10::BFloat16* weight = layer.weight + first * padded_inputs<c10::BFloat16>(layer.inputs);
    for (int64_t piece = 0; piece < pieces.count; ++piece, weight += depth * kPackedColumns) {
      at::native::cpublas::brgemm(
          rows, kPackedColumns, depth, a_stride, kPackedColumns, kPackedColumns, piece > 0, a + pieces.offset(piece),
          weight, panel_);
    }
  }

  template <typename C, typename Epilogue>
  void finish(
      int64_t row, int64_t rows, int64_t column, int64_t columns, C* c, int64_t c_stride, const Epilogue& epilogue) {
    constexpr int64_t kLanes = Vec<float>::size();
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; j += kLanes) {
        const int64_t lanes = std::min(kLanes, columns - j);
        C* target = c + (row + i) * c_stride + column + j;
        Vec<float> value = Vec<float>::loadu(panel_ + i * kPackedColumns + j);
        if constexpr (Epilogue::kAccumulate) value = value + load_as<float>(target, lanes);
        store_as(epilogue.template operator()<float>(row + i, column + j, value), target, lanes);
      }
    }
  }

  alignas(64) float panel_[kMaxRows * kPackedColumns];
};
#endif

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Linear layers in bfloat16 through torch's brgemm, which runs on the matrix units (AMX) where the processor has them.
#pragma once

#include "cpu/linear.h"

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

namespace mobilevit::cpu::CPU_CAPABILITY {

// A panel of outputs at a time in float32, then its epilogue on the way to c. Inputs are padded with zeros to pairs.
template <>
class LinearRunner<c10::BFloat16> {
 public:
  static constexpr int64_t kMaxRows = 64;

  LinearRunner() = default;
  LinearRunner(const LinearRunner&) = delete;
  LinearRunner& operator=(const LinearRunner&) = delete;
  // The matrix units belong to the thread until then.
  ~LinearRunner() { at::native::cpublas::brgemm_release(); }

  template <typename C, typename Epilogue>
  void operator()(
      const PackedLinear<c10::BFloat16>& layer, int64_t rows, const c10::BFloat16* a, int64_t a_stride, C* c,
      int64_t c_stride, const Epilogue& epilogue) {
    const int64_t start = 0;
    for (int64_t row = 0; row < rows; row += kMaxRows) {
      const int64_t count = std::min(kMaxRows, rows - row);
      for (int64_t first = 0; first < layer.outputs; first += kPackedColumns) {
        multiply(layer, first, {1, &start}, count, a + row * a_stride, a_stride);
        finish(row, count, first, std::min(kPackedColumns, layer.outputs - first), c, c_stride, epilogue);
      }
    }
  }

  // The outputs [first, first + kPackedColumns) alone, with inputs in pieces of an even length.
  template <typename C, typename Epilogue>
  void panel(
      const PackedLinear<c10::BFloat16>& layer, int64_t first, const Pieces& pieces, int64_t rows,
      const c10::BFloat16* a, int64_t a_stride, C* c, int64_t c_stride, const Epilogue& epilogue) {
    for (int64_t row = 0; row < rows; row += kMaxRows) {
      const int64_t count = std::min(kMaxRows, rows - row);
      multiply(layer, first, pieces, count, a + row * a_stride, a_stride);
      finish(row, count, first, std::min(kPackedColumns, layer.outputs - first), c, c_stride, epilogue);
    }
  }

 private:
  // panel_ = a weight^T for a panel of outputs.
  void multiply(
      const PackedLinear<c10::BFloat16>& layer, int64_t first, const Pieces& pieces, int64_t rows,
      const c10::BFloat16* a, int64_t a_stride) {
    const int64_t inputs = padded_inputs<c10::BFloat16>(layer.inputs), depth = inputs / pieces.count;
    const c10::BFloat16* weight = layer.weight + first * inputs;
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
        if constexpr (Epilogue::kAccumulate) value = value + Vec<float>::loadu(target, lanes);
        store_as(epilogue.template operator()<float>(row + i, column + j, value), target, lanes);
      }
    }
  }

  alignas(64) float panel_[kMaxRows * kPackedColumns];
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Linear layers on rows of tokens with packed weights, and what is fused to their ends.
#pragma once

#include "cpu/gemm.h"
#include "cpu/packed_weights.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

// A value x * sigmoid(x).
inline Vec<float> silu(const Vec<float>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  // 1 / (1 + 2**e) from a 14-bit estimate and one Newton step: a division would cost more than all else. The bound
  // keeps 1 + 2**e finite; NaN stays.
  const __m512 exponent = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)));
  const __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0f), exp2_score<float>(exponent));
  const __m512 estimate = _mm512_rcp14_ps(denominator);
  const __m512 correction = _mm512_fnmadd_ps(denominator, estimate, _mm512_set1_ps(2.0f));
  return _mm512_mul_ps(_mm512_mul_ps(x, estimate), correction);
#else
  return x / (Vec<float>(1) + x.neg().exp());
#endif
}

// Biases are padded, so that whole vectors may be read.
struct AddBias : Overwrite {
  const float* bias;

  explicit AddBias(const float* bias) : bias(bias) {}
  template <typename T>
  Vec<T> operator()(int64_t /*row*/, int64_t column, const Vec<T>& value) const {
    return value + Vec<T>::loadu(bias + column);
  }
};

struct AddBiasSilu : AddBias {
  using AddBias::AddBias;
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t column, const Vec<T>& value) const {
    return silu(AddBias::operator()<T>(row, column, value));
  }
};

// Adds to what is there: the residual.
struct AddBiasToResidual : AddBias {
  static constexpr bool kAccumulate = true;
  using AddBias::AddBias;
};

// c[rows, outputs] = epilogue(a[rows, inputs] weight^T), for one thread. Here in float32.
template <typename W>
class LinearRunner {
 public:
  template <typename Epilogue>
  void operator()(
      const PackedLinear<W>& layer, int64_t rows, const W* a, int64_t a_stride, W* c, int64_t c_stride,
      const Epilogue& epilogue) {
    const auto weight = PanelMatrix<W>::packed(layer.weight, layer.inputs);
    const StridedMatrix<W> matrix{a, a_stride, 1};
    gemm_panels(rows, layer.outputs, layer.inputs, matrix, weight, c, c_stride, epilogue);
  }

  // The outputs [first, first + kPackedColumns) alone, with inputs in pieces.
  template <typename Epilogue>
  void panel(
      const PackedLinear<W>& layer, int64_t first, const Pieces& pieces, int64_t rows, const W* a, int64_t a_stride,
      W* c, int64_t c_stride, const Epilogue& epilogue) {
    const auto weight = PanelMatrix<W>::packed(layer.weight, layer.inputs);
    const Product<W, Pieces> product{{a, a_stride, 1}, weight, c, c_stride, layer.inputs / pieces.count, pieces};
    gemm_columns(product, rows, first, std::min(first + kPackedColumns, layer.outputs), epilogue);
  }
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

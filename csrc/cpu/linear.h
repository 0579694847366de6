// Linear layers on rows of tokens with packed weights, and what is fused to their ends.
#pragma once

#include "cpu/capability.h"
#include "cpu/gemm.h"
#include "cpu/packed_weights.h"
#include "cpu/products.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <type_traits>

namespace mobilevit::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
// 1 + e**-x. The bound keeps it finite; min returns its second operand where one is NaN.
inline __m256 one_plus_exp_minus(__m256 x) {
  const __m256 exponent = _mm256_min_ps(_mm256_set1_ps(126.0f), _mm256_mul_ps(x, _mm256_set1_ps(-kLog2E)));
  return _mm256_add_ps(_mm256_set1_ps(1.0f), exp2_score<float>(exponent));
}
#endif

// 1 / (1 + e**-x), to the precision of W.
template <typename W, typename A>
inline Vec<A> sigmoid(const Vec<A>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<W, c10::BFloat16>) {
    // A 14-bit reciprocal. An infinite denominator gives 0, NaN stays.
    const Vec<float> exponent = _mm512_mul_ps(x, _mm512_set1_ps(-kLog2E));
    const __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0f), exp2_for_bfloat16(exponent));
    return _mm512_rcp14_ps(denominator);
  } else if constexpr (std::is_same_v<A, float>) {
    // 1 / (1 + 2**e) from a 14-bit estimate and one Newton step: a division would cost more than all else. The bound
    // keeps 1 + 2**e finite; NaN stays.
    const __m512 exponent = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, _mm512_set1_ps(-kLog2E)));
    const __m512 denominator = _mm512_add_ps(_mm512_set1_ps(1.0f), exp2_score<float>(exponent));
    const __m512 estimate = _mm512_rcp14_ps(denominator);
    const __m512 correction = _mm512_fnmadd_ps(denominator, estimate, _mm512_set1_ps(2.0f));
    return _mm512_mul_ps(estimate, correction);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) return _mm256_div_ps(_mm256_set1_ps(1.0f), one_plus_exp_minus(x));
#endif
  return Vec<A>(1) / (Vec<A>(1) + x.neg().exp());
}

// A value x * sigmoid(x), to the precision of W.
template <typename W>
inline Vec<float> silu(const Vec<float>& x) {
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  return _mm256_div_ps(x, one_plus_exp_minus(x));
#else
  return x * sigmoid<W>(x);
#endif
}

// Biases are padded, so that whole vectors may be read.
template <typename A>
struct AddBias : Overwrite {
  const A* bias;

  explicit AddBias(const A* bias) : bias(bias) {}
  template <typename T>
  Vec<T> operator()(int64_t /*row*/, int64_t column, const Vec<T>& value) const {
    return value + Vec<T>::loadu(bias + column);
  }
};

// W: of the products, whose precision the result needs.
template <typename W>
struct AddBiasSilu : AddBias<float> {
  using AddBias::AddBias;
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t column, const Vec<T>& value) const {
    return silu<W>(AddBias::operator()<T>(row, column, value));
  }
};

// Adds to what is there: the residual.
struct AddBiasToResidual : AddBias<float> {
  static constexpr bool kAccumulate = true;
  using AddBias::AddBias;
};

// Whether products may read rows of inputs as they lie, without zeros behind them.
template <typename W>
bool reads_unpadded(int64_t inputs) {
  return inputs == (has_matrix_unit() ? padded_inputs<W>(inputs) : paired_inputs<W>(inputs));
}

constexpr int64_t kMaxLayerRows = 64;

// c[rows, outputs] = epilogue(a[rows, inputs] weight^T), for one thread. Here in float32.
template <typename W>
class LinearRunner {
 public:
  // Rows that go through several layers at once, in L1 and L2: whole tiles of the products.
  static int64_t layer_rows() { return 48; }

  template <typename Epilogue>
  void operator()(
      const PackedLinear<W>& layer, int64_t rows, const W* a, int64_t a_stride, W* c, int64_t c_stride,
      const Epilogue& epilogue) {
    const auto weight = PanelMatrix<W>::packed(layer.weight, layer.inputs);
    const RowMajor<W> matrix{a, a_stride};
    gemm_panels(rows, layer.outputs, layer.inputs, matrix, weight, c, c_stride, epilogue);
  }

  // The outputs [first, first + kPackedColumns) alone, with inputs in pieces.
  template <typename Epilogue>
  void panel(
      const PackedLinear<W>& layer, int64_t first, const Pieces& pieces, int64_t rows, const W* a, int64_t a_stride,
      W* c, int64_t c_stride, const Epilogue& epilogue) {
    const auto weight = PanelMatrix<W>::packed(layer.weight, layer.inputs);
    using Factors = Product<RowMajor<W>, PanelMatrix<W>, W, Pieces>;
    const Factors product{{a, a_stride}, weight, c, c_stride, layer.inputs / pieces.count, pieces};
    gemm_columns(product, rows, first, std::min(first + kPackedColumns, layer.outputs), epilogue);
  }
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

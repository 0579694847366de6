// Elements of matrix products, and how they are multiplied: numbers in the type of their sums, or pairs of bfloat16.
#pragma once

#include "cpu/simd.h"

#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Steps of a product's depth in one pass of its loop. Next to the few sums that AVX2 has registers for, the counters of
// a loop of single steps cost a tenth of the time.
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
constexpr int kDepthUnroll = 4;
#else
constexpr int kDepthUnroll = 1;
#endif

// Two bfloat16 values next to each other: elements 2k and 2k + 1 along the depth of a product. They lie in arrays of
// bfloat16.
struct [[gnu::may_alias]] Bfloat16Pair {
  uint32_t bits;
};

// What a product reads of rows of W: the number itself, or pairs of bfloat16.
template <typename W>
using factor_t = std::conditional_t<std::is_same_v<W, c10::BFloat16>, Bfloat16Pair, W>;

template <typename W>
constexpr int64_t kPerFactor = sizeof(factor_t<W>) / sizeof(W);

template <typename W>
inline const factor_t<W>* factors(const W* values) {
  return reinterpret_cast<const factor_t<W>*>(values);
}

// Vector: as many elements as there are lanes in a vector of sums.
template <typename T>
struct Operands {
  using Sum = T;
  using Vector = Vec<T>;

  static Vector load(const T* p) { return Vec<T>::loadu(p); }
  static Vector load(const T* p, int lanes) { return load_first(p, lanes); }
  static Vector broadcast(T value) { return Vec<T>(value); }
  static Vec<T> multiply_add(const Vector& a, const Vector& b, const Vec<T>& sum) { return at::vec::fmadd(a, b, sum); }
};

template <typename T>
using sum_t = typename Operands<T>::Sum;

#if defined(CPU_CAPABILITY_AVX512_BF16)
template <>
struct Operands<Bfloat16Pair> {
  using Sum = float;
  using Vector = __m512i;

  static Vector load(const Bfloat16Pair* p) { return _mm512_loadu_si512(p); }
  static Vector load(const Bfloat16Pair* p, int lanes) {
    return _mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << lanes) - 1), p);
  }
  static Vector broadcast(Bfloat16Pair pair) { return _mm512_set1_epi32(static_cast<int>(pair.bits)); }
  static Vec<float> multiply_add(const Vector& a, const Vector& b, const Vec<float>& sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
};

// (low[i], high[i]) from sixteen values low, then sixteen high.
inline __m512i interleave_halves(__m512i halves) {
  constexpr uint32_t kStep = 0x00010001, kFirst = 0x00100000;
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i index = _mm512_add_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32(kStep)), _mm512_set1_epi32(kFirst));
  return _mm512_permutexvar_epi16(index, halves);
}

// Pairs (first[i], second[i]), rounded to nearest.
inline void store_pairs(const Vec<float>& first, const Vec<float>& second, Bfloat16Pair* pairs) {
  const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  _mm512_storeu_si512(pairs, interleave_halves(halves));
}

// The same from `count` values of bfloat16, zeros behind them.
inline void store_pairs(const c10::BFloat16* first, const c10::BFloat16* second, int64_t count, Bfloat16Pair* pairs) {
  const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(count, 16)) - 1);
  const __m256i low = _mm256_maskz_loadu_epi16(mask, first), high = _mm256_maskz_loadu_epi16(mask, second);
  _mm512_storeu_si512(pairs, interleave_halves(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)));
}
#endif

}  // namespace mobilevit::cpu::CPU_CAPABILITY

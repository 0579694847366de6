// Vector helpers shared by the CPU kernels. Compiled once per instruction set (see CMakeLists.txt): everything lives
// in a namespace named after it, so that no two builds of one function can be confused by the linker.
#pragma once

#include "cpu/packed_weights.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <typename T>
using Vec = at::vec::Vectorized<T>;

// float64 for float64, else float32: the type of sums and statistics.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// The first count elements, zero behind them. On AVX2, at::vec would go through memory.
template <typename T>
inline Vec<T> load_first(const T* p, int64_t count) {
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    if (count == Vec<T>::size()) return _mm256_loadu_ps(p);
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane));
  }
#endif
  return Vec<T>::loadu(p, count);
}

template <typename T>
inline void store_first(const Vec<T>& value, T* p, int64_t count) {
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    if (count == Vec<T>::size()) return value.store(p);
    // Masked stores are slow on some processors.
    __m128 rest = _mm256_castps256_ps128(value);
    if (count & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(value, 1), p += 4;
    }
    if (count & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest), p += 2;
    }
    if (count & 1) _mm_store_ss(p, rest);
    return;
  }
#endif
  value.store(p, static_cast<int>(count));
}

// dst[0, n) = src[0, n), converted; from one type of 16 bits to the other by way of float32.
template <typename From, typename To>
inline void convert_row(const From* src, To* dst, int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    int64_t i = 0;
    for (; i + Vec<To>::size() <= n; i += Vec<To>::size()) Vec<To>::loadu(src + i).store(dst + i);
    if (i < n) store_first(load_first(src + i, n - i), dst + i, n - i);
  } else if constexpr (std::is_same_v<To, float>) {
    constexpr int64_t kHalf = Vec<float>::size();
    for (int64_t i = 0; i < n; i += 2 * kHalf) {
      const int64_t count = std::min(2 * kHalf, n - i);
      const auto [low, high] = at::vec::convert_to_float<From>(Vec<From>::loadu(src + i, count));
      low.store(dst + i, static_cast<int>(std::min(count, kHalf)));
      if (count > kHalf) high.store(dst + i + kHalf, static_cast<int>(count - kHalf));
    }
  } else if constexpr (sizeof(From) == sizeof(To)) {
    constexpr int64_t kPiece = 64;
    alignas(64) float wide[kPiece];
    for (int64_t i = 0; i < n; i += kPiece) {
      const int64_t count = std::min(kPiece, n - i);
      convert_row(src + i, wide, count);
      convert_row(wide, dst + i, count);
    }
  } else {
    constexpr int64_t kHalf = Vec<float>::size();
    for (int64_t i = 0; i < n; i += 2 * kHalf) {
      const int64_t count = std::min(2 * kHalf, n - i);
      const auto low = Vec<float>::loadu(src + i, std::min(count, kHalf));
      const auto high = count > kHalf ? Vec<float>::loadu(src + i + kHalf, count - kHalf) : Vec<float>(0);
      at::vec::convert_from_float<To>(low, high).store(dst + i, static_cast<int>(count));
    }
  }
}

// dst[j, i] = src[i, j] for i < rows, j < columns.
template <typename T>
inline void transpose(const T* src, int64_t src_stride, T* dst, int64_t dst_stride, int64_t rows, int64_t columns) {
  if constexpr (std::is_same_v<T, float>) {
    at::vec::transpose_mxn<float>(src, src_stride, dst, dst_stride, static_cast<int>(rows), static_cast<int>(columns));
  } else {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) dst[j * dst_stride + i] = src[i * src_stride + j];
    }
  }
}

template <typename T>
inline T horizontal_sum(const Vec<T>& vector) {
  return at::vec::vec_reduce_all<T>([](auto& a, auto& b) { return a + b; }, vector);
}

#if defined(CPU_CAPABILITY_AVX512)
// Lane i of the result is the lanes of vectors[i], joined by an associative operation.
template <typename Join>
inline Vec<float> joined_lanes(const Vec<float> (&vectors)[16], const Join& join) {
  __m512 quarters[4];
  for (int i = 0; i < 4; ++i) {
    const __m512 a = vectors[4 * i], b = vectors[4 * i + 1], c = vectors[4 * i + 2], d = vectors[4 * i + 3];
    const __m512 ab = join(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const __m512 cd = join(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    quarters[i] = join(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  }
  const auto join_halves = [join](__m512 a, __m512 b) {
    return join(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  };
  return join_halves(join_halves(quarters[0], quarters[1]), join_halves(quarters[2], quarters[3]));
}
#endif

// Lane i of the result is the sum of the lanes of vectors[i].
template <typename T>
inline Vec<T> sums_of_lanes(const Vec<T> (&vectors)[Vec<T>::size()]) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    return joined_lanes(vectors, [](__m512 a, __m512 b) { return _mm512_add_ps(a, b); });
  }
#endif
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    const auto four = [&vectors](int i) {
      return _mm256_hadd_ps(_mm256_hadd_ps(vectors[i], vectors[i + 1]), _mm256_hadd_ps(vectors[i + 2], vectors[i + 3]));
    };
    const __m256 low = four(0), high = four(4);
    return _mm256_add_ps(_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31));
  }
#endif
  T sums[Vec<T>::size()];
  for (int64_t i = 0; i < Vec<T>::size(); ++i) sums[i] = horizontal_sum(vectors[i]);
  return Vec<T>::loadu(sums);
}

// sum_i a[i] * b[i]
template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  Vec<T> sum(0);
  int64_t i = 0;
  for (; i + Vec<T>::size() <= n; i += Vec<T>::size()) {
    sum = at::vec::fmadd(Vec<T>::loadu(a + i), Vec<T>::loadu(b + i), sum);
  }
  if (i < n) sum = at::vec::fmadd(load_first(a + i, n - i), load_first(b + i, n - i), sum);
  return horizontal_sum(sum);
}

// count elements of a storage type, converted to the accumulation type A; zero behind them.
template <typename A, typename T>
inline Vec<A> load_as(const T* p, int64_t count = Vec<A>::size()) {
  if constexpr (std::is_same_v<A, T>) {
    return load_first(p, count);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const __m256i stored = count == Vec<A>::size() ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))
                                                   : _mm256_maskz_loadu_epi16(mask, p);
    __m512 value;
    at::vec::cvt_to_fp32<T>(stored, value);
    return value;
#elif defined(CPU_CAPABILITY_AVX2)
    __m128i stored = _mm_setzero_si128();
    std::memcpy(&stored, p, count * sizeof(T));
    __m256 value;
    at::vec::cvt_to_fp32<T>(stored, value);
    return value;
#else
    A values[Vec<A>::size()] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = static_cast<A>(p[i]);
    return Vec<A>::loadu(values);
#endif
  }
}

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// bfloat16 or float16, rounded to nearest.
template <typename T>
inline auto to_storage(const Vec<float>& value) {
  if constexpr (std::is_same_v<T, c10::BFloat16>) {
#if defined(CPU_CAPABILITY_AVX512_BF16)
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(value));
#else
    return at::vec::cvtfp32_bf16(value);
#endif
  } else {
    return at::vec::cvtfp32_fp16(value);
  }
}
#endif

// The first count elements, converted to the storage type.
template <typename A, typename T>
inline void store_as(const Vec<A>& value, T* p, int64_t count = Vec<A>::size()) {
  if constexpr (std::is_same_v<A, T>) {
    store_first(value, p, count);
  } else {
#if defined(CPU_CAPABILITY_AVX512)
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    const __m256i stored = to_storage<T>(value);
    if (count == Vec<A>::size()) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), stored);
    } else {
      _mm256_mask_storeu_epi16(p, mask, stored);
    }
#elif defined(CPU_CAPABILITY_AVX2)
    const __m128i stored = to_storage<T>(value);
    std::memcpy(p, &stored, count * sizeof(T));
#else
    A values[Vec<A>::size()];
    value.store(values);
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(values[i]);
#endif
  }
}

// Every accumulator of a register tile.
template <typename T, int kRows, int kVectors>
C10_ALWAYS_INLINE void fill_tile(Vec<T> (&sums)[kRows][kVectors], T value) {
#pragma GCC unroll 24
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[m][v] = Vec<T>(value);
  }
}

// sum_i coefficients[i] * x**(n - 1 - i)
template <size_t kTerms>
inline Vec<float> polynomial(const float (&coefficients)[kTerms], const Vec<float>& x) {
  Vec<float> value(coefficients[0]);
#pragma GCC unroll 8
  for (size_t i = 1; i < kTerms; ++i) value = at::vec::fmadd(value, x, Vec<float>(coefficients[i]));
  return value;
}

// Minimax polynomials of 2**x, 1 at 0: on [0, 1] with a relative error of 8.3e-8; on [-1/2, 1/2] with 9.2e-8, and below
// 2**-24.
constexpr float kExp2OfFraction[] = {1.86712631523e-3f, 9.01703824435e-3f, 5.57999075046e-2f,
                                     2.40164451650e-1f, 6.93151311689e-1f, 1.0f};
constexpr float kExp2OfRest[] = {1.3264727140e-3f, 9.6715126400e-3f, 5.5507337435e-2f,
                                 2.4022242086e-1f, 6.9314697760e-1f, 1.0f};
constexpr float kExp2NearZero[] = {
    1.5353361976e-4f, 1.3398874400e-3f, 9.6184373570e-3f, 5.5503324710e-2f, 2.4022651091e-1f, 6.9314718056e-1f, 1.0f};

// 2**x for scores of softmax: x below 1 (with AVX2 or AVX-512 below 127), or NaN, which stays NaN; relative error below
// 2**-22 in float32 where the result is normal.
template <typename A>
inline Vec<A> exp2_score(const Vec<A>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    // x = floor(x) + r; r is 0 for -inf.
    const Vec<float> r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(polynomial(kExp2OfFraction, r), x);  // by 2**floor(x)
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    // As above, with floor(x) added to the exponent of the polynomial, which is 1 at 0: at the bound that leaves the
    // bits of 0. max returns its second operand where one is NaN.
    const __m256 bounded = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
    const __m256 whole = _mm256_floor_ps(bounded);
    const Vec<float> p = polynomial(kExp2OfFraction, _mm256_sub_ps(bounded, whole));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), exponent));
  }
#endif
  return x.exp2();
}

// 2**(x * factor - origin) where that is a normal number below 2**127 and the origin an integer; the same error.
template <typename A>
inline Vec<A> exp2_of_product(const Vec<A>& x, const Vec<A>& factor, const Vec<A>& origin) {
#if defined(CPU_CAPABILITY_AVX2) && !defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) {
    // A sum with 1.5 * 2**23 is rounded to an integer, which its lowest bits hold. The rest is rounded once.
    const __m256 shift = _mm256_sub_ps(_mm256_set1_ps(0x1.8p23f), origin);
    const __m256 shifted = _mm256_fmadd_ps(x, factor, shift);
    const Vec<float> rest = _mm256_fmsub_ps(x, factor, _mm256_sub_ps(shifted, shift));
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(shifted), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(polynomial(kExp2OfRest, rest)), exponent));
  }
#endif
  return exp2_score<A>(at::vec::fmsub(x, factor, origin));
}

#if defined(CPU_CAPABILITY_AVX512)
// As exp2_score, to the precision of bfloat16: relative error below 2**-12, where rounding has 2**-9. A cubic of the
// fraction that is 1 at 0 and 2 at 1.
inline Vec<float> exp2_for_bfloat16(const Vec<float>& x) {
  constexpr float kCubic[] = {7.8267949e-2f, 2.2630768e-1f, 6.9542437e-1f, 1.0f};
  const Vec<float> r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(polynomial(kCubic, r), x);
}
#endif

// The larger of both; b where one is NaN.
template <typename A>
inline Vec<A> larger(const Vec<A>& a, const Vec<A>& b) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float>) return _mm512_max_ps(a, b);
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) return _mm256_max_ps(a, b);
#endif
  return at::vec::maximum(a, b);
}

// 2**x for x <= 0 (or NaN, which stays NaN).
template <typename T>
inline Vec<T> exp2_nonpositive(const Vec<T>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    // x = n + r with |r| <= 1/2. Below -200 the result is 0; max returns its second operand where one is NaN.
    const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 n = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    return _mm512_scalef_ps(polynomial(kExp2NearZero, _mm512_sub_ps(clamped, n)), n);
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<T, float>) {
    const __m256 clamped = _mm256_max_ps(_mm256_set1_ps(-150.0f), x);
    const __m256 n = _mm256_round_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vec<float> p = polynomial(kExp2NearZero, _mm256_sub_ps(clamped, n));
    // 2**(n + 64) is normal; below 2**-126 the product underflows as it should.
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    const __m256i shifted = _mm256_add_epi32(exponent, _mm256_set1_epi32((127 + 64) << 23));
    return _mm256_mul_ps(_mm256_mul_ps(p, _mm256_castsi256_ps(shifted)), _mm256_set1_ps(0x1p-64f));
  }
#endif
  return x.exp2();
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

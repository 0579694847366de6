// Vector helpers shared by the CPU kernels. Compiled once per instruction set (see CMakeLists.txt): everything lives
// in a namespace named after it, so that no two builds of one function can be confused by the linker.
#pragma once

#include "cpu/packed_weights.h"

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>

#include <cstdint>
#include <type_traits>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

template <typename T>
using Vec = at::vec::Vectorized<T>;

// float64 for float64, else float32: the type of sums and statistics.
template <typename T>
using acc_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// dst[0, n) = src[0, n), converted between a storage type and its accumulation type.
template <typename From, typename To>
inline void convert_row(const From* src, To* dst, int64_t n) {
  if constexpr (std::is_same_v<From, To>) {
    int64_t i = 0;
    for (; i + Vec<To>::size() <= n; i += Vec<To>::size()) Vec<To>::loadu(src + i).store(dst + i);
    if (i < n) Vec<To>::loadu(src + i, n - i).store(dst + i, static_cast<int>(n - i));
  } else if constexpr (std::is_same_v<To, float>) {
    constexpr int64_t kHalf = Vec<float>::size();
    for (int64_t i = 0; i < n; i += 2 * kHalf) {
      const int64_t count = std::min(2 * kHalf, n - i);
      const auto [low, high] = at::vec::convert_to_float<From>(Vec<From>::loadu(src + i, count));
      low.store(dst + i, static_cast<int>(std::min(count, kHalf)));
      if (count > kHalf) high.store(dst + i + kHalf, static_cast<int>(count - kHalf));
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

// sum_i a[i] * b[i]
template <typename T>
inline T dot(const T* a, const T* b, int64_t n) {
  Vec<T> sum(0);
  int64_t i = 0;
  for (; i + Vec<T>::size() <= n; i += Vec<T>::size()) {
    sum = at::vec::fmadd(Vec<T>::loadu(a + i), Vec<T>::loadu(b + i), sum);
  }
  if (i < n) sum = at::vec::fmadd(Vec<T>::loadu(a + i, n - i), Vec<T>::loadu(b + i, n - i), sum);
  return horizontal_sum(sum);
}

// 2**x for x <= 0 (or NaN, which stays NaN).
template <typename T>
inline Vec<T> exp2_nonpositive(const Vec<T>& x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, float>) {
    // x = n + r with |r| <= 1/2; 2**r by a degree-6 polynomial (relative error below 2**-24). Below -200 the result
    // is 0; max returns its second operand where one is NaN.
    const __m512 clamped = _mm512_max_ps(_mm512_set1_ps(-200.0f), x);
    const __m512 n = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(clamped, n);
    __m512 p = _mm512_set1_ps(1.5353361976e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3398874400e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.6184373570e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.5503324710e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(2.4022651091e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(6.9314718056e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
  }
#endif
  return x.exp2();
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

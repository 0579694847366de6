// Normalisation of rows of tokens: each row by its own statistics, or all by given ones.
#pragma once

#include "cpu/products.h"
#include "cpu/simd.h"

#include <algorithm>
#include <cmath>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Calls step(offset, lanes) for the whole vectors of a row and for what is left of it.
template <typename Step>
inline void for_vectors(int64_t n, const Step& step) {
  constexpr int64_t kLanes = Vec<float>::size();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) step(i, kLanes);
  if (i < n) step(i, n - i);
}

// The sum over a row of add(offset, lanes, sum so far): several sums at a time hide each other's latency.
template <typename Add>
inline float sum_vectors(int64_t n, const Add& add) {
  constexpr int64_t kLanes = Vec<float>::size(), kSums = 4;
  Vec<float> sums[kSums] = {Vec<float>(0), Vec<float>(0), Vec<float>(0), Vec<float>(0)};
  int64_t i = 0;
  for (; i + kSums * kLanes <= n; i += kSums * kLanes) {
    for (int64_t k = 0; k < kSums; ++k) sums[k] = add(i + k * kLanes, kLanes, sums[k]);
  }
  for (; i < n; i += kLanes) sums[0] = add(i, std::min(n - i, kLanes), sums[0]);
  return horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

inline float row_sum(const float* row, int64_t n) {
  return sum_vectors(
      n, [row](int64_t i, int64_t lanes, const Vec<float>& sum) { return sum + Vec<float>::loadu(row + i, lanes); });
}

// sum_i (row[i] - origin)**2
inline float squared_distance(const float* row, int64_t n, float origin) {
  constexpr int64_t kLanes = Vec<float>::size();
  const Vec<float> center(origin);
  return sum_vectors(n, [row, center](int64_t i, int64_t lanes, const Vec<float>& sum) {
    const Vec<float> distance = Vec<float>::loadu(row + i, lanes) - center;
    // Lanes past the end are not part of the row.
    const Vec<float> counted = lanes == kLanes ? distance : Vec<float>::set(Vec<float>(0), distance, lanes);
    return at::vec::fmadd(counted, counted, sum);
  });
}

// normed[i] = (row[i] - mean) * factor, in the type of normed.
template <typename W>
inline void normalize_row(const float* row, int64_t n, float mean, float factor, W* normed) {
  const Vec<float> center(mean), scale(factor);
  for_vectors(n, [&](int64_t i, int64_t lanes) {
    store_as((Vec<float>::loadu(row + i, lanes) - center) * scale, normed + i, lanes);
  });
}

// LayerNorm without its affine parameters (arXiv 1607.06450): rows [count, n] -> normed [count, n] at a stride.
template <typename W>
inline void normalize_rows(const float* rows, int64_t count, int64_t n, double eps, W* normed, int64_t normed_stride) {
  for (int64_t i = 0; i < count; ++i) {
    if (i % 4 == 0) Products<factor_t<W>>::keep_ready();
    const float* row = rows + i * n;
    const float mean = row_sum(row, n) / static_cast<float>(n);
    const float variance = squared_distance(row, n, mean) / static_cast<float>(n);
    normalize_row(row, n, mean, 1.0f / std::sqrt(variance + static_cast<float>(eps)), normed + i * normed_stride);
  }
}

// rows[i, c] = rows[i, c] * weight[c] + bias[c], in place.
inline void scale_shift_rows(float* rows, int64_t count, int64_t n, const float* weight, const float* bias) {
  for (int64_t i = 0; i < count; ++i) {
    float* row = rows + i * n;
    for_vectors(n, [&](int64_t c, int64_t lanes) {
      const Vec<float> value = Vec<float>::loadu(row + c, lanes);
      const Vec<float> result = at::vec::fmadd(value, Vec<float>::loadu(weight + c), Vec<float>::loadu(bias + c));
      result.store(row + c, static_cast<int>(lanes));
    });
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

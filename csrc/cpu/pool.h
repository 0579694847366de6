// Softmax-weighted sums of tokens in parts: each part relative to its own largest query, joined at the end.
#pragma once

#include "cpu/gemm.h"
#include "cpu/norm.h"
#include "cpu/simd.h"

#include <algorithm>
#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kPoolTokens = 64;  // of a part, at most

// e**x for x <= 0 (or NaN). The rounding of x * log2(e) is put back, for sums over many tokens would show it.
template <typename A>
Vec<A> exp_nonpositive(const Vec<A>& x) {
  const Vec<A> log2_e(static_cast<A>(kLog2E));
  const Vec<A> exponent = x * log2_e;
  const Vec<A> result = exp2_nonpositive<A>(exponent);
  const Vec<A> lost = at::vec::fmsub(x, log2_e, exponent) + x * Vec<A>(static_cast<A>(kLog2E - static_cast<A>(kLog2E)));
  const Vec<A> corrected = at::vec::fmadd(result, lost * Vec<A>(static_cast<A>(kLn2)), result);
  // Far below zero the correction is 0 * inf.
  return Vec<A>::blendv(corrected, result, result == Vec<A>(0));
}

// weights = e**(queries - maximum); without a query above -inf, e**-inf = 0 rather than NaN. In place too.
template <typename A>
void exponentiate(const A* queries, int64_t count, A maximum, A* weights) {
  const Vec<A> origin(maximum == -std::numeric_limits<A>::infinity() ? A(0) : maximum);
  for (int64_t n = 0; n < count; n += Vec<A>::size()) {
    const int64_t lanes = std::min<int64_t>(Vec<A>::size(), count - n);
    exp_nonpositive<A>(Vec<A>::loadu(queries + n, lanes) - origin).store(weights + n, static_cast<int>(lanes));
  }
}

template <int kVectors, typename A, typename Access>
inline void weighted_sum_columns(
    const A* const* rows, int64_t count, const A* weights, int64_t column, const Access& access, A* sum) {
  Vec<A> total[kVectors];
  for (auto& t : total) t = Vec<A>(0);
  for (int64_t i = 0; i < count; ++i) {
    const Vec<A> weight(weights[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      total[v] = at::vec::fmadd(access.template load<A>(rows[i] + column + v * Vec<A>::size()), weight, total[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) access.store(total[v], sum + column + v * Vec<A>::size());
}

// sum = sum_i weights[i] * rows[i], over n columns.
template <typename A>
inline void weighted_sum(const A* const* rows, int64_t count, const A* weights, int64_t n, A* sum) {
  constexpr int64_t kLanes = Vec<A>::size();
  int64_t c = 0;
  for (; c + 8 * kLanes <= n; c += 8 * kLanes) weighted_sum_columns<8>(rows, count, weights, c, WholeVectors(), sum);
  for (; c + 4 * kLanes <= n; c += 4 * kLanes) weighted_sum_columns<4>(rows, count, weights, c, WholeVectors(), sum);
  for (; c + kLanes <= n; c += kLanes) weighted_sum_columns<1>(rows, count, weights, c, WholeVectors(), sum);
  if (c < n) weighted_sum_columns<1>(rows, count, weights, c, PartialVector{static_cast<int>(n - c)}, sum);
}

// In memory: largest query, sum of exponentials, weighted sum of the tokens [C].
template <typename A>
class PartialPool {
 public:
  explicit PartialPool(A* data) : data_(data) {}
  static int64_t size(int64_t channels) { return round_up(2 + channels, 16); }

  A maximum() const { return data_[0]; }
  A sum() const { return data_[1]; }
  const A* tokens() const { return data_ + 2; }

  // count <= kPoolTokens; of none, a pool that adds nothing. A NaN among the queries shows in the sums.
  void fill(const A* queries, const A* const* tokens, int64_t count, int64_t channels) {
    alignas(64) A weights[kPoolTokens];
    A maximum = -std::numeric_limits<A>::infinity();
    for (int64_t n = 0; n < count; ++n) maximum = queries[n] > maximum ? queries[n] : maximum;
    exponentiate(queries, count, maximum, weights);
    A sum = 0;
    for (int64_t n = 0; n < count; ++n) sum += weights[n];
    data_[0] = maximum;
    data_[1] = sum;
    weighted_sum(tokens, count, weights, channels, data_ + 2);
  }

 private:
  A* data_;
};

template <typename A>
struct PoolStatistics {
  A maximum, inverse;  // of the queries, and of the sum of exponentials relative to it
};

// pooled[C] = the weighted mean over all parts, one at least; part(i) is the i-th.
template <typename A, typename Part>
inline PoolStatistics<A> join_pools(int64_t count, int64_t channels, const Part& part, A* pooled) {
  A maximum = part(0).maximum();
  for (int64_t i = 1; i < count; ++i) maximum = std::max(maximum, part(i).maximum());
  A sum = 0;
  std::fill_n(pooled, channels, A(0));
  for (int64_t i = 0; i < count; ++i) {
    const PartialPool<A> pool = part(i);
    A weight, own = pool.maximum();
    exponentiate(&own, 1, maximum, &weight);
    sum += weight * pool.sum();
    for (int64_t c = 0; c < channels; ++c) pooled[c] += weight * pool.tokens()[c];
  }
  const A inverse = A(1) / sum;
  for (int64_t c = 0; c < channels; ++c) pooled[c] *= inverse;
  return {maximum, inverse};
}

// sum_i (row[i] - origin) * weight[i]; the weights are padded to whole vectors.
inline float centered_dot(const float* row, const float* weight, int64_t n, float origin) {
  const Vec<float> center(origin);
  return sum_vectors(n, [row, weight, center](int64_t i, int64_t lanes, const Vec<float>& sum) {
    // Padded weights are zero: lanes past the end add nothing.
    return at::vec::fmadd(Vec<float>::loadu(row + i, lanes) - center, Vec<float>::loadu(weight + i), sum);
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Softmax-weighted sums of tokens in parts: each part relative to its own largest query, joined at the end.
#pragma once

#include "cpu/norm.h"
#include "cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// e**(query - maximum); 0 rather than NaN where there is no query above -inf.
inline float relative_weight(float query, float maximum) {
  return std::exp(query - (maximum == kMinusInfinity ? 0.0f : maximum));
}

// In memory: largest query, sum of exponentials, weighted sum of the tokens [C].
class PartialPool {
 public:
  explicit PartialPool(float* data) : data_(data) {}
  static int64_t size(int64_t channels) { return 2 + channels; }

  float maximum() const { return data_[0]; }
  float sum() const { return data_[1]; }
  const float* tokens() const { return data_ + 2; }

  void clear(int64_t channels) {
    data_[0] = kMinusInfinity;
    std::fill_n(data_ + 1, 1 + channels, 0.0f);
  }
  // Every query is seen before the first token is added. A NaN stays.
  void see(float query) {
    if (!(query <= data_[0])) data_[0] = query;
  }
  void add(float query, const float* token, int64_t channels) {
    const float weight = relative_weight(query, maximum());
    data_[1] += weight;
    const Vec<float> factor(weight);
    for_vectors(channels, [&](int64_t c, int64_t lanes) {
      float* target = data_ + 2 + c;
      at::vec::fmadd(factor, Vec<float>::loadu(token + c, lanes), Vec<float>::loadu(target, lanes))
          .store(target, static_cast<int>(lanes));
    });
  }

 private:
  float* data_;
};

// pooled[C] = the weighted mean over all parts; part(i) is the i-th.
template <typename Part>
inline void join_pools(int64_t count, int64_t channels, const Part& part, float* pooled) {
  float maximum = kMinusInfinity;
  for (int64_t i = 0; i < count; ++i) {
    if (!(part(i).maximum() <= maximum)) maximum = part(i).maximum();
  }
  float sum = 0;
  std::fill_n(pooled, channels, 0.0f);
  for (int64_t i = 0; i < count; ++i) {
    const float weight = relative_weight(part(i).maximum(), maximum);
    sum += weight * part(i).sum();
    for (int64_t c = 0; c < channels; ++c) pooled[c] += weight * part(i).tokens()[c];
  }
  for (int64_t c = 0; c < channels; ++c) pooled[c] /= sum;
}

// sum_i (row[i] - origin) * weight[i]; the weights are padded to whole vectors.
inline float centered_dot(const float* row, const float* weight, int64_t n, float origin) {
  const Vec<float> center(origin);
  Vec<float> sum(0);
  for_vectors(n, [&](int64_t i, int64_t lanes) {
    // Padded weights are zero: lanes past the end add nothing.
    sum = at::vec::fmadd(Vec<float>::loadu(row + i, lanes) - center, Vec<float>::loadu(weight + i), sum);
  });
  return horizontal_sum(sum);
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Softmax over the keys of a panel of queries, block of keys after block.
#pragma once

#include "cpu/unfold_attn_fold_tile.h"

#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Rows of probabilities, two keys at a time, in the place of their products.
template <typename F>
struct ProbabilityRows {
  F* lanes;
  int64_t stride;

  void store(int64_t key, const Vec<F>& first, const Vec<F>& second) const {
    first.store(lanes + key * stride);
    second.store(lanes + (key + 1) * stride);
  }
  void store(int64_t key, const Vec<F>& last) const { last.store(lanes + key * stride); }
};

#if defined(CPU_CAPABILITY_AVX512_BF16)
template <>
struct ProbabilityRows<Bfloat16Pair> {
  float* lanes;
  int64_t stride;

  void store(int64_t key, const Vec<float>& first, const Vec<float>& second) const {
    store_pairs(first, second, reinterpret_cast<Bfloat16Pair*>(lanes + key / 2 * stride));
  }
  void store(int64_t key, const Vec<float>& last) const { store(key, last, Vec<float>(0)); }
};
#endif

// Statistics of a panel of queries, one number per lane, of scores in units of log 2 (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", arXiv 1805.02867).
template <typename A>
struct OnlineSoftmax {
  // The result of a bounded panel is made of 2**-80 and more.
  static constexpr A kMaxBound = 40;

  A* maximum;  // of the scores so far; where they are bounded, an integer that none exceeds
  A* sum;      // of 2**(score - origin), the origin being the maximum, or 0 where that is -inf
  A* decay;    // the factor of all that was summed before the last block

  template <int kVectors>
  void begin() {
    std::fill_n(maximum, kVectors * kLanes<A>, -std::numeric_limits<A>::infinity());
    std::fill_n(sum, kVectors * kLanes<A>, A(0));
  }

  // The same where no score's magnitude exceeds its lane's bound; false where a bound is too large, or NaN.
  template <int kVectors>
  bool begin_bounded(const Vec<A> (&bounds)[kVectors]) {
    Vec<A> largest = bounds[0];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      largest = at::vec::maximum(largest, bounds[v]);
      bounds[v].ceil().store(maximum + v * kLanes<A>);
    }
    std::fill_n(sum, kVectors * kLanes<A>, A(0));
    std::fill_n(decay, kVectors * kLanes<A>, A(1));
    return at::vec::vec_reduce_all<A>([](auto& a, auto& b) { return at::vec::maximum(a, b); }, largest) <= kMaxBound;
  }

  // Stores 2**(factor * product - maximum) of a tile's products, [kRows, kVectors], and adds to the sums.
  template <int kRows, int kVectors>
  C10_ALWAYS_INLINE void exponentiate_tile(Vec<A> (&products)[kRows][kVectors], A factor, A* probabilities) const {
    Vec<A> totals[kVectors], origins[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      totals[v] = Vec<A>(0);
      origins[v] = Vec<A>::loadu(maximum + v * kLanes<A>);
    }
    for_each_sum(products, [&](int m, int v, const Vec<A>& product) {
      const Vec<A> probability = exp2_of_product<A>(product, Vec<A>(factor), origins[v]);
      probability.store(probabilities + (m * kVectors + v) * kLanes<A>);
      totals[v] = totals[v] + probability;
    });
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      A* lanes = sum + v * kLanes<A>;
      (Vec<A>::loadu(lanes) + totals[v]).store(lanes);
    }
  }

  // Replaces products [keys, kVectors] by 2**(score - origin), score = factor * product, and updates the statistics.
  // factor >= 0; block_maxima are those of the products. F: what the result is a factor of; its pairs of keys
  // [ceil(keys / 2), kVectors] lie at the beginning of the products.
  template <typename F, int kVectors>
  void exponentiate(int64_t keys, A factor, const Vec<A> (&block_maxima)[kVectors], A* products) {
    constexpr int kChains = 4;  // independent sums hide each other's latency and round less than one
    constexpr int64_t kWidth = kVectors * kLanes<A>;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const int64_t lane = v * kLanes<A>;
      const Vec<A> old_maximum = Vec<A>::loadu(maximum + lane);
      const Vec<A> new_maximum = larger(old_maximum, block_maxima[v] * Vec<A>(factor));
      const Vec<A> origin = origin_of(new_maximum);
      const Vec<A> block_decay = exp2_score<A>(old_maximum - origin);
      Vec<A> sums[kChains] = {A(0), A(0), A(0), A(0)};
      const auto step = [&](int64_t k, int chain) {
        const Vec<A> product = Vec<A>::loadu(products + k * kWidth + lane);
        const Vec<A> probability = exp2_score<A>(at::vec::fmsub(product, Vec<A>(factor), origin));
        sums[chain] = sums[chain] + probability;
        return probability;
      };
      const ProbabilityRows<F> rows{products + lane, kWidth};
      int64_t k = 0;
      for (; k + kChains <= keys; k += kChains) {
#pragma GCC unroll 4
        for (int chain = 0; chain < kChains; chain += 2) {
          const Vec<A> first = step(k + chain, chain), second = step(k + chain + 1, chain + 1);
          rows.store(k + chain, first, second);
        }
      }
      for (; k + 2 <= keys; k += 2) {
        const Vec<A> first = step(k, 0), second = step(k + 1, 1);
        rows.store(k, first, second);
      }
      if (k < keys) rows.store(k, step(k, 0));
      const Vec<A> block_sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
      at::vec::fmadd(Vec<A>::loadu(sum + lane), block_decay, block_sum).store(sum + lane);
      new_maximum.store(maximum + lane);
      block_decay.store(decay + lane);
    }
  }

 private:
  // A lane without a score above -inf yet must stay at sum 0 rather than turn NaN.
  static Vec<A> origin_of(const Vec<A>& maximum) {
    return Vec<A>::blendv(maximum, Vec<A>(0), maximum == Vec<A>(-std::numeric_limits<A>::infinity()));
  }
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// BatchNorm by given statistics and SiLU of pixels as they are read, and the derivative of SiLU there.
#pragma once

#include "cpu/channel_strips.h"
#include "cpu/input_activation.h"
#include "cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

// y = x * scale + shift of each channel: a BatchNorm.
template <typename A>
struct Affine {
  std::vector<A> scale, shift;

  Affine(const InputActivation& norm, int64_t channels) : scale(channels), shift(channels) {
    for (int64_t c = 0; c < channels; ++c) {
      const double deviation = std::sqrt(static_cast<const A*>(norm.var)[c] + norm.eps);
      const double factor = static_cast<const A*>(norm.weight)[c] / deviation;
      scale[c] = static_cast<A>(factor);
      shift[c] = static_cast<A>(static_cast<const A*>(norm.bias)[c] - static_cast<const A*>(norm.mean)[c] * factor);
    }
  }
};

// The derivative of SiLU, to the precision of W.
template <typename W, typename A>
inline Vec<A> silu_slope(const Vec<A>& x) {
  const Vec<A> gate = sigmoid<W>(x);
  return gate * at::vec::fmadd(x, Vec<A>(1) - gate, Vec<A>(1));
}

// W: what pixels become.
template <typename W>
class ActivatedPixels {
  using A = acc_t<W>;
  static constexpr int64_t kLanes = Vec<A>::size();

 public:
  ActivatedPixels(const InputActivation& activation, int64_t channels)
      : channels_(channels),
        has_norm_(activation.has_norm()),
        silu_(activation.silu),
        mean_(static_cast<const A*>(activation.mean)),
        affine_(activation, has_norm_ ? channels : 0) {}

  bool any() const { return has_norm_ || silu_; }

  // to[0, channels) of `count` pixels from x.
  template <typename From>
  void read(const From* x, int64_t count, W* to) const {
    if (!has_norm_) return read<false, true>(x, count, to);
    silu_ ? read<true, true>(x, count, to) : read<true, false>(x, count, to);
  }

  // From gradients behind SiLU to those d before it, in place, at `count` pixels of x. Adds to sums of each channel,
  // [2, channels], where there is a norm: d, and d (x - mean).
  template <typename From>
  void differentiate(const From* x, int64_t count, W* grads, int64_t stride, A* sums) const {
    if (!has_norm_) return silu_ ? differentiate<false, true>(x, count, grads, stride, sums) : void();
    silu_ ? differentiate<true, true>(x, count, grads, stride, sums)
          : differentiate<true, false>(x, count, grads, stride, sums);
  }

 private:
  // Calls function(offset of a vector, its channel, its lanes) for all vectors of the pixels.
  template <typename Function>
  C10_ALWAYS_INLINE void for_vectors(int64_t count, const Function& function) const {
    for (int64_t pixel = 0; pixel < count * channels_; pixel += channels_) {
      int64_t c = 0;
      for (; c + kLanes <= channels_; c += kLanes) function(pixel + c, c, kLanes);
      if (c < channels_) function(pixel + c, c, channels_ - c);
    }
  }

  template <bool kNorm, typename From>
  C10_ALWAYS_INLINE Vec<A> normed(const From* x, int64_t c, int64_t lanes) const {
    const Vec<A> value = load_as<A>(x, lanes);
    if constexpr (!kNorm) return value;
    return at::vec::fmadd(
        value, Vec<A>::loadu(affine_.scale.data() + c, lanes), Vec<A>::loadu(affine_.shift.data() + c, lanes));
  }

  template <bool kNorm, bool kSilu, typename From>
  void read(const From* x, int64_t count, W* to) const {
    for_vectors(count, [&](int64_t at, int64_t c, int64_t lanes) {
      const Vec<A> value = normed<kNorm>(x + at, c, lanes);
      store_as(kSilu ? value * sigmoid<W>(value) : value, to + at, lanes);
    });
  }

  template <bool kNorm, bool kSilu, typename From>
  void differentiate(const From* x, int64_t count, W* grads, int64_t stride, A* sums) const {
    for_strips<A>(channels_, [&](auto vectors, int64_t c, int64_t last) {
      constexpr int kVectors = decltype(vectors)::value;
      Vec<A> scale[kVectors], shift[kVectors], mean[kVectors], sum[kVectors], product[kVectors];
      if constexpr (kNorm) {
        load_strip(scale, affine_.scale.data() + c, last);
        load_strip(shift, affine_.shift.data() + c, last);
        load_strip(mean, mean_ + c, last);
        for (int v = 0; v < kVectors; ++v) sum[v] = product[v] = Vec<A>(0);
      }
      for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = c + v * kLanes, lanes = v == kVectors - 1 ? last : kLanes;
          const Vec<A> value = load_as<A>(x + i * channels_ + at, lanes);
          Vec<A> gradient = load_as<A>(grads + i * stride + at, lanes);
          if constexpr (kSilu) {
            gradient = gradient * silu_slope<W>(kNorm ? at::vec::fmadd(value, scale[v], shift[v]) : value);
            store_as(gradient, grads + i * stride + at, lanes);
          }
          if constexpr (kNorm) {
            sum[v] = sum[v] + gradient;
            product[v] = at::vec::fmadd(gradient, value - mean[v], product[v]);
          }
        }
      }
      if constexpr (kNorm) {
        add_strip(sum, sums + c, last);
        add_strip(product, sums + channels_ + c, last);
      }
    });
  }

  template <int kVectors>
  static void add_strip(const Vec<A> (&strip)[kVectors], A* total, int64_t last) {
    for (int v = 0; v < kVectors; ++v, total += kLanes) {
      const int64_t lanes = v == kVectors - 1 ? last : kLanes;
      (Vec<A>::loadu(total, lanes) + strip[v]).store(total, static_cast<int>(lanes));
    }
  }

  int64_t channels_;
  bool has_norm_, silu_;
  const A* mean_;
  Affine<A> affine_;
};

// total[i] = the sum of sums[block, i], in the order of the blocks
template <typename A>
inline void add_blocks(const A* sums, int64_t blocks, int64_t size, double* total) {
  std::fill_n(total, size, 0.0);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < size; ++i) total[i] += sums[block * size + i];
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

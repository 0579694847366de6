// BatchNorm by given statistics and SiLU of pixels as they are read, and the derivative of SiLU there.
#pragma once

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
        affine_(activation, has_norm_ ? channels : 0) {}

  bool any() const { return has_norm_ || silu_; }
  bool has_silu() const { return silu_; }

  // to[0, channels) of `count` pixels from x.
  template <typename From>
  void read(const From* x, int64_t count, W* to) const {
    if (!has_norm_) return read<false, true>(x, count, to);
    silu_ ? read<true, true>(x, count, to) : read<true, false>(x, count, to);
  }

  // From gradients behind SiLU to those before it, in place, at pixels of x.
  template <typename From>
  void differentiate(const From* x, int64_t count, W* grads) const {
    if (!silu_) return;
    has_norm_ ? differentiate<true>(x, count, grads) : differentiate<false>(x, count, grads);
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

  template <bool kNorm, typename From>
  void differentiate(const From* x, int64_t count, W* grads) const {
    for_vectors(count, [&](int64_t at, int64_t c, int64_t lanes) {
      const Vec<A> slope = silu_slope<W>(normed<kNorm>(x + at, c, lanes));
      store_as(load_as<A>(grads + at, lanes) * slope, grads + at, lanes);
    });
  }

  int64_t channels_;
  bool has_norm_, silu_;
  Affine<A> affine_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// 3x3 depthwise convolution of single rows of a map, with or without SiLU at its end.
#pragma once

#include "cpu/linear.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

// A row of `channels` values: whole cache lines, of a number that does not fall into the same few cache sets.
template <typename A>
int64_t padded_pixel(int64_t channels) {
  constexpr int64_t kLine = 64 / sizeof(A);
  return round_up(channels, kLine) + kLine;
}

// Widths in pixels. Padding is as wide as the dilation, on all sides.
struct DepthwiseShape {
  int64_t width, out_width, channels, stride, dilation;
};

// taps [9, tap_stride] and bias are padded with zeros to whole vectors.
struct DepthwiseWeights {
  const float *taps, *bias;
  int64_t tap_stride;
};

// out[x, c] = activation(bias[c] + sum_{i,j} taps[3 i + j, c] * rows[i][x * stride + (j - 1) * dilation, c]). Vectors
// of channels are the outer loop: their taps stay in registers for a whole row.
template <typename W, bool kSilu>
class DepthwiseRow {
 public:
  // rows [width, row_stride], padded with zeros to whole vectors of channels; out [out_width, out_stride].
  DepthwiseRow(
      const DepthwiseShape& shape, const DepthwiseWeights& weights, const float* const (&rows)[3], int64_t row_stride,
      W* out, int64_t out_stride)
      : shape_(shape), weights_(weights), rows_(rows), row_stride_(row_stride), out_(out), out_stride_(out_stride) {}

  // padded: rows have `dilation` columns of zeros on either side, out of their width.
  void run(bool padded = false) const {
    const int64_t last = (shape_.width - 1 - shape_.dilation) / shape_.stride;
    int64_t left = std::min((shape_.dilation + shape_.stride - 1) / shape_.stride, shape_.out_width);
    int64_t right = shape_.width > shape_.dilation ? std::clamp(last + 1, left, shape_.out_width) : left;
    if (padded) left = 0, right = shape_.out_width;
    int64_t c = 0;
    for (; c + kLanes <= shape_.channels; c += kLanes) channels(c, left, right, WholeVectors());
    if (c < shape_.channels) channels(c, left, right, PartialVector{static_cast<int>(shape_.channels - c)});
  }

 private:
  static constexpr int64_t kLanes = Vec<float>::size();
#if defined(CPU_CAPABILITY_AVX512)
  static constexpr int kOutputs = 8;  // beside nine taps in 32 registers
#else
  static constexpr int kOutputs = 4;
#endif

  // A vector of channels of the rows: at the center of the first output's window, then `step` elements on.
  struct Channels {
    const float* rows[3];
    int64_t step, side;  // side: to the window's next column
    W* out;
    int64_t out_stride;

    // Outputs from x on. By value: the compiler takes what is stored for any object that it has the address of.
    template <int kCount, typename Access>
    C10_ALWAYS_INLINE void store(int64_t x, const Vec<float> (&sums)[kCount], const Access access) const {
      const int64_t stride = out_stride;
      W* target = out + x * stride;
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k, target += stride) {
        access.template store<float>(kSilu ? silu<W>(sums[k]) : sums[k], target);
      }
    }
  };

  // Channels from c on; the windows of the outputs [left, right) do not look past a side.
  template <typename Access>
  void channels(int64_t c, int64_t left, int64_t right, const Access& access) const {
    Products<factor_t<W>>::keep_ready();
    const int64_t step = shape_.stride * row_stride_, side = shape_.dilation * row_stride_;
    const Channels here{{rows_[0] + c, rows_[1] + c, rows_[2] + c}, step, side, out_ + c, out_stride_};
    for (int64_t x = 0; x < left; ++x) edge(here, c, x, access);
    inner(here, c, left, right, access);
    for (int64_t x = right; x < shape_.out_width; ++x) edge(here, c, x, access);
  }

  Vec<float> tap(int index, int64_t c) const {
    return Vec<float>::loadu(weights_.taps + index * weights_.tap_stride + c);
  }

  template <typename Access>
  void inner(const Channels& here, int64_t c, int64_t x, int64_t end, const Access& access) const {
    const Vec<float> taps[9] = {tap(0, c), tap(1, c), tap(2, c), tap(3, c), tap(4, c),
                                tap(5, c), tap(6, c), tap(7, c), tap(8, c)};
    const Vec<float> bias = Vec<float>::loadu(weights_.bias + c);
    for (; x + kOutputs <= end; x += kOutputs) outputs<kOutputs>(here, taps, bias, x, access);
    for (; x + kOutputs / 2 <= end; x += kOutputs / 2) outputs<kOutputs / 2>(here, taps, bias, x, access);
    for (; x < end; ++x) outputs<1>(here, taps, bias, x, access);
  }

  template <int kCount, typename Access>
  static C10_ALWAYS_INLINE void outputs(
      const Channels& here, const Vec<float> (&taps)[9], const Vec<float>& bias, int64_t x, const Access& access) {
    Vec<float> sums[kCount];
#pragma GCC unroll 8
    for (int k = 0; k < kCount; ++k) sums[k] = bias;
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const float* row = here.rows[i] + x * here.step - here.side;
#pragma GCC unroll 3
      for (int j = 0; j < 3; ++j, row += here.side) {
#pragma GCC unroll 8
        for (int k = 0; k < kCount; ++k) {
          sums[k] = at::vec::fmadd(Vec<float>::loadu(row + k * here.step), taps[3 * i + j], sums[k]);
        }
      }
    }
    here.store(x, sums, access);
  }

  // An output some of whose inputs are padding.
  template <typename Access>
  void edge(const Channels& here, int64_t c, int64_t x, const Access& access) const {
    Vec<float> sums[1] = {Vec<float>::loadu(weights_.bias + c)};
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) {
        const int64_t column = x * shape_.stride + (j - 1) * shape_.dilation;
        if (column < 0 || column >= shape_.width) continue;
        sums[0] = at::vec::fmadd(Vec<float>::loadu(rows_[i] + column * row_stride_ + c), tap(3 * i + j, c), sums[0]);
      }
    }
    here.store(x, sums, access);
  }

  const DepthwiseShape& shape_;
  const DepthwiseWeights& weights_;
  const float* const (&rows_)[3];
  int64_t row_stride_;
  W* out_;
  int64_t out_stride_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

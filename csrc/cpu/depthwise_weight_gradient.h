// The gradient of the weight of a 3x3 depthwise convolution, row after row.
#pragma once

#include "cpu/depthwise_conv2d_kernel.h"
#include "cpu/depthwise_taps.h"
#include "cpu/simd.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kWeightSegment = 32;  // columns whose sums for the weight stay in registers: short sums round less

// Adds sum over x of grad_out[x, c] * rows[i][x * stride + (j - 1) * dilation, c] to sums[3 i + j, c].
template <typename T>
class WeightGradient {
  using A = acc_t<T>;
  static constexpr int64_t kLanes = Vec<A>::size();

 public:
  explicit WeightGradient(const DepthwiseConv2dShape& shape)
      : channels_(shape.channels),
        rows_(forward_taps(shape.height, shape.stride, shape.dilation)[0]),
        columns_(forward_taps(shape.width, shape.stride, shape.dilation)[0]) {
    const bool whole = channels_ >= kLanes && columns_.count == 3;
    left_ = whole ? columns_.left : columns_.outputs;
    right_ = whole ? columns_.right : columns_.outputs;
  }

  // Row y of grad_out, with the rows row_at(index) of one sample of the map.
  template <typename RowAt>
  void run(const T* grad_out, const RowAt& row_at, int64_t y, A* sums) const {
    Line line{{}, grad_out, sums};
    for (int t = 0; t < rows_.count; ++t) {
      const int64_t row = y * rows_.step + rows_.offset[t];
      if (rows_.reads(row)) line.rows[rows_.tap[t]] = row_at(row);
    }
    for (int64_t column = 0; column < left_; ++column) pixel(line, column);
    for (int64_t first = left_; first < right_; first += kWeightSegment) {
      const int64_t end = std::min(first + kWeightSegment, right_);
      if (!columns_.adjacent()) {
        segment<0>(line, first, end);
      } else if (columns_.step == 1) {
        segment<1>(line, first, end);
      } else if (columns_.step == 2) {
        segment<2>(line, first, end);
      } else {
        segment<0>(line, first, end);
      }
    }
    for (int64_t column = right_; column < columns_.outputs; ++column) pixel(line, column);
  }

 private:
  struct Line {
    const T* rows[3];  // null: padding
    const T* grad_out;
    A* sums;
  };

  template <int kStep>
  void segment(const Line& line, int64_t first, int64_t end) const {
    for_whole_vectors<A>(channels_, [&](int64_t c, int64_t skipped) {
      Vec<A> sums[3][3];
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) sums[t / 3][t % 3] = Vec<A>(0);
      int64_t column = first;
      for (; column + 4 <= end; column += 4) tile<4, kStep>(line, column, c, sums);
      for (; column < end; ++column) tile<1, kStep>(line, column, c, sums);
#pragma GCC unroll 9
      for (int t = 0; t < 9; ++t) add(sums[t / 3][t % 3], skipped, line.sums + t * channels_ + c);
    });
  }

  // kCount columns of grad_out; kStep as in Gather.
  template <int kCount, int kStep>
  C10_ALWAYS_INLINE void tile(const Line& line, int64_t column, int64_t c, Vec<A> (&sums)[3][3]) const {
    Vec<A> grads[kCount];
#pragma GCC unroll 4
    for (int k = 0; k < kCount; ++k) grads[k] = load_as<A>(line.grad_out + (column + k) * channels_ + c);
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      if (line.rows[i] == nullptr) continue;
      const T* x = line.rows[i] + (column * columns_.step + columns_.offset[0]) * channels_ + c;
      if constexpr (kStep == 0) {
        const int64_t side = columns_.offset[1] * channels_, step = columns_.step * channels_;
#pragma GCC unroll 4
        for (int k = 0; k < kCount; ++k, x += step) {
#pragma GCC unroll 3
          for (int j = 0; j < 3; ++j) {
            const T* value = x + j * (side - columns_.offset[0] * channels_);
            sums[i][j] = at::vec::fmadd(load_as<A>(value), grads[k], sums[i][j]);
          }
        }
      } else {
#pragma GCC unroll 12
        for (int n = 0; n < (kCount - 1) * kStep + 3; ++n, x += channels_) {
          const Vec<A> value = load_as<A>(x);
#pragma GCC unroll 4
          for (int k = 0; k < kCount; ++k) {
            const int j = n - k * kStep;
            if (j >= 0 && j < 3) sums[i][j] = at::vec::fmadd(value, grads[k], sums[i][j]);
          }
        }
      }
    }
  }

  static C10_ALWAYS_INLINE void add(const Vec<A>& sum, int64_t skipped, A* total) {
    if (skipped == 0) return (Vec<A>::loadu(total) + sum).store(total);
    A values[kLanes];
    sum.store(values);
    for (int64_t lane = skipped; lane < kLanes; ++lane) total[lane] += values[lane];
  }

  // A column some of whose taps may be outside, and any number of channels.
  void pixel(const Line& line, int64_t column) const {
    for (int i = 0; i < 3; ++i) {
      for (int t = 0; t < columns_.count; ++t) {
        const int64_t position = column * columns_.step + columns_.offset[t];
        if (line.rows[i] == nullptr || !columns_.reads(position)) continue;
        const T *grad = line.grad_out + column * channels_, *x = line.rows[i] + position * channels_;
        A* sums = line.sums + (3 * i + columns_.tap[t]) * channels_;
        for (int64_t c = 0; c < channels_; c += kLanes) {
          const int64_t lanes = std::min(kLanes, channels_ - c);
          const Vec<A> sum = Vec<A>::loadu(sums + c, lanes);
          at::vec::fmadd(load_as<A>(x + c, lanes), load_as<A>(grad + c, lanes), sum)
              .store(sums + c, static_cast<int>(lanes));
        }
      }
    }
  }

  int64_t channels_, left_, right_;  // outputs [left, right) have all three columns inside
  AxisTaps rows_, columns_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

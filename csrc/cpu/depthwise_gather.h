// Rows of a 3x3 depthwise convolution, or of the gradient of its map (depthwise_taps.h), in any storage type.
#pragma once

#include "cpu/depthwise_taps.h"
#include "cpu/simd.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

#if defined(CPU_CAPABILITY_AVX512)
constexpr int kGatherOutputs = 8;  // beside three taps and a value of the map
#else
constexpr int kGatherOutputs = 4;
#endif

// weight [C, 9] as [9, C] in the accumulation type; whole vectors may be read.
template <typename T, typename A = acc_t<T>>
class TapMatrix {
 public:
  TapMatrix(const void* weight, int64_t channels) : channels_(channels), taps_(9 * channels + Vec<A>::size()) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int t = 0; t < 9; ++t) taps_[t * channels + c] = static_cast<A>(static_cast<const T*>(weight)[9 * c + t]);
    }
  }
  const A* at(int row, int column) const { return taps_.data() + (3 * row + column) * channels_; }

 private:
  int64_t channels_;
  std::vector<A> taps_;
};

// Rows of out[m, c] = sum over the taps of rows and columns of source[row][column, c] * taps[tap, c].
template <typename T>
class Gather {
  using A = acc_t<T>;
  static constexpr int64_t kLanes = Vec<A>::size();

 public:
  // rows, columns: by residue of the position in the result.
  Gather(std::vector<AxisTaps> rows, std::vector<AxisTaps> columns, const TapMatrix<T>& taps, int64_t channels)
      : rows_(std::move(rows)), columns_(std::move(columns)), taps_(taps), channels_(channels) {}

  // Row y of the result, from the rows row_at(index) of one sample of the source.
  template <typename RowAt>
  void run(const RowAt& row_at, int64_t y, T* out) const {
    const int64_t residues = rows_.size();
    const AxisTaps& vertical = rows_[y % residues];
    Rows rows;
    for (int t = 0; t < vertical.count; ++t) {
      const int64_t row = y / residues * vertical.step + vertical.offset[t];
      if (!vertical.reads(row)) continue;
      rows.data[rows.count] = row_at(row);
      rows.tap[rows.count++] = vertical.tap[t];
    }
    const int64_t count = columns_.size();
    for (int64_t residue = 0; residue < count; ++residue) {
      const Line line{columns_[residue], rows, out + residue * channels_, count * channels_};
      if (line.columns.outputs > 0) run(line);
    }
  }

 private:
  struct Rows {
    const T* data[3];
    int tap[3], count = 0;
  };
  // Every so many pixels of a row of the result.
  struct Line {
    const AxisTaps& columns;
    const Rows& rows;
    T* out;
    int64_t out_step;
  };

  void run(const Line& line) const {
    const AxisTaps& columns = line.columns;
    const bool whole = channels_ >= kLanes;
    const int64_t left = whole ? columns.left : columns.outputs, right = whole ? columns.right : columns.outputs;
    for (int64_t m = 0; m < left; ++m) pixel(line, m);
    if (left < right) inner(line, left, right);
    for (int64_t m = right; m < columns.outputs; ++m) pixel(line, m);
  }

  void inner(const Line& line, int64_t left, int64_t right) const {
    const AxisTaps& columns = line.columns;
    if (columns.step == 1 && columns.count > 0 && columns.adjacent()) {
      if (columns.count == 1) return tiles<1, 1>(line, left, right);
      if (columns.count == 2) return tiles<1, 2>(line, left, right);
      return tiles<1, 3>(line, left, right);
    }
    if (columns.step == 2 && columns.count == 3 && columns.adjacent()) return tiles<2, 3>(line, left, right);
    tiles<0, 0>(line, left, right);
  }

  // The last tile starts earlier where it would be partial.
  template <int kStep, int kTaps>
  void tiles(const Line& line, int64_t left, int64_t right) const {
    constexpr int kHalf = kGatherOutputs / 2;
    int64_t m = left;
    for (; m + kGatherOutputs <= right; m += kGatherOutputs) tile<kGatherOutputs, kStep, kTaps>(line, m);
    if (m < right && right - left >= kGatherOutputs)
      return tile<kGatherOutputs, kStep, kTaps>(line, right - kGatherOutputs);
    for (; m + kHalf <= right; m += kHalf) tile<kHalf, kStep, kTaps>(line, m);
    if (m < right && right - left >= kHalf) return tile<kHalf, kStep, kTaps>(line, right - kHalf);
    for (; m < right; ++m) pixel(line, m);
  }

  // kCount outputs from m on, all of whose taps are inside. Windows of kTaps adjacent columns that move by kStep share
  // what they load; others (0) do not.
  template <int kCount, int kStep, int kTaps>
  void tile(const Line& line, int64_t m) const {
    const AxisTaps& columns = line.columns;
    const Rows& rows = line.rows;
    for_whole_vectors<A>(channels_, [&](int64_t c, int64_t /*skipped*/) {
      Vec<A> sums[kCount];
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) sums[k] = Vec<A>(0);
      for (int r = 0; r < rows.count; ++r) {
        const T* row = rows.data[r] + m * columns.step * channels_ + c;
        if constexpr (kStep == 0) {
          for (int t = 0; t < columns.count; ++t) {
            const Vec<A> tap = Vec<A>::loadu(taps_.at(rows.tap[r], columns.tap[t]) + c);
            const T* column = row + columns.offset[t] * channels_;
#pragma GCC unroll 8
            for (int k = 0; k < kCount; ++k, column += columns.step * channels_) {
              sums[k] = at::vec::fmadd(load_as<A>(column), tap, sums[k]);
            }
          }
        } else {
          Vec<A> taps[kTaps];
#pragma GCC unroll 3
          for (int t = 0; t < kTaps; ++t) taps[t] = Vec<A>::loadu(taps_.at(rows.tap[r], columns.tap[t]) + c);
          const T* column = row + columns.offset[0] * channels_;
#pragma GCC unroll 24
          for (int i = 0; i < (kCount - 1) * kStep + kTaps; ++i, column += channels_) {
            const Vec<A> value = load_as<A>(column);
#pragma GCC unroll 8
            for (int k = 0; k < kCount; ++k) {
              const int t = i - k * kStep;
              if (t >= 0 && t < kTaps) sums[k] = at::vec::fmadd(value, taps[t], sums[k]);
            }
          }
        }
      }
      T* out = line.out + m * line.out_step + c;
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) store_as(sums[k], out + k * line.out_step);
    });
  }

  // An output some of whose taps may be outside, and any number of channels.
  void pixel(const Line& line, int64_t m) const {
    const T* values[9];
    const A* taps[9];
    int count = 0;
    for (int r = 0; r < line.rows.count; ++r) {
      for (int t = 0; t < line.columns.count; ++t) {
        const int64_t column = m * line.columns.step + line.columns.offset[t];
        if (!line.columns.reads(column)) continue;
        values[count] = line.rows.data[r] + column * channels_;
        taps[count++] = taps_.at(line.rows.tap[r], line.columns.tap[t]);
      }
    }
    T* out = line.out + m * line.out_step;
    for (int64_t c = 0; c < channels_; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels_ - c);
      Vec<A> sum(0);
      for (int i = 0; i < count; ++i) {
        sum = at::vec::fmadd(load_as<A>(values[i] + c, lanes), Vec<A>::loadu(taps[i] + c), sum);
      }
      store_as(sum, out + c, lanes);
    }
  }

  std::vector<AxisTaps> rows_, columns_;
  const TapMatrix<T>& taps_;
  int64_t channels_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// 3x3 depthwise convolution on NHWC maps and its gradients, bound by memory: the gradient of the map is a convolution
// of grad_out (depthwise_taps.h), and both gradients are computed row after row while the rows are in cache. Threads
// share blocks of rows, whose sums do not depend on the threads.
#include "cpu/depthwise_conv2d_kernel.h"

#include "cpu/depthwise_taps.h"
#include "cpu/dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockValues = 65536;  // of grad_out in a block of rows
constexpr int64_t kBlockRows = 64;       // at most
constexpr int64_t kSegment = 32;         // columns whose sums for the weight stay in registers: short sums round less
#if defined(CPU_CAPABILITY_AVX512)
constexpr int kOutputs = 8;  // beside three taps and a value of the map
#else
constexpr int kOutputs = 4;
#endif

template <typename A>
constexpr int64_t kLanes = Vec<A>::size();

// Calls function(channel, skipped) for whole vectors of channels; the last one starts earlier where it would be
// partial, and its first `skipped` lanes have been in the one before.
template <typename A, typename Function>
C10_ALWAYS_INLINE void for_vectors(int64_t channels, const Function& function) {
  for (int64_t c = 0; c < channels; c += kLanes<A>) {
    const int64_t start = std::min(c, channels - kLanes<A>);
    function(start, c - start);
  }
}

// weight [C, 9] as [9, C] in the accumulation type; whole vectors may be read.
template <typename T, typename A = acc_t<T>>
class TapMatrix {
 public:
  TapMatrix(const void* weight, int64_t channels) : channels_(channels), taps_(9 * channels + kLanes<A>) {
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

 public:
  // rows, columns: by residue of the position in the result.
  Gather(std::vector<AxisTaps> rows, std::vector<AxisTaps> columns, const TapMatrix<T>& taps, int64_t channels)
      : rows_(std::move(rows)), columns_(std::move(columns)), taps_(taps), channels_(channels) {}

  // Row y of the result, from one sample of the source.
  void run(const T* source, int64_t y, T* out) const {
    const int64_t residues = rows_.size();
    const AxisTaps& vertical = rows_[y % residues];
    Rows rows;
    for (int t = 0; t < vertical.count; ++t) {
      const int64_t row = y / residues * vertical.step + vertical.offset[t];
      if (!vertical.reads(row)) continue;
      rows.data[rows.count] = source + row * columns_[0].source * channels_;
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
    const bool whole = channels_ >= kLanes<A>;
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
    constexpr int kHalf = kOutputs / 2;
    int64_t m = left;
    for (; m + kOutputs <= right; m += kOutputs) tile<kOutputs, kStep, kTaps>(line, m);
    if (m < right && right - left >= kOutputs) return tile<kOutputs, kStep, kTaps>(line, right - kOutputs);
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
    for_vectors<A>(channels_, [&](int64_t c, int64_t /*skipped*/) {
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
    for (int64_t c = 0; c < channels_; c += kLanes<A>) {
      const int64_t lanes = std::min(kLanes<A>, channels_ - c);
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

// Adds sum over x of grad_out[x, c] * rows[i][x * stride + (j - 1) * dilation, c] to sums[3 i + j, c].
template <typename T>
class WeightGradient {
  using A = acc_t<T>;

 public:
  explicit WeightGradient(const DepthwiseConv2dShape& shape)
      : channels_(shape.channels),
        rows_(forward_taps(shape.height, shape.stride, shape.dilation)[0]),
        columns_(forward_taps(shape.width, shape.stride, shape.dilation)[0]) {
    const bool whole = channels_ >= kLanes<A> && columns_.count == 3;
    left_ = whole ? columns_.left : columns_.outputs;
    right_ = whole ? columns_.right : columns_.outputs;
  }

  // Row y of grad_out, with one sample of the map.
  void run(const T* grad_out, const T* x, int64_t y, A* sums) const {
    Line line{{}, grad_out, sums};
    for (int t = 0; t < rows_.count; ++t) {
      const int64_t row = y * rows_.step + rows_.offset[t];
      if (rows_.reads(row)) line.rows[rows_.tap[t]] = x + row * columns_.source * channels_;
    }
    for (int64_t column = 0; column < left_; ++column) pixel(line, column);
    for (int64_t first = left_; first < right_; first += kSegment) {
      const int64_t end = std::min(first + kSegment, right_);
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
    for_vectors<A>(channels_, [&](int64_t c, int64_t skipped) {
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
    A values[kLanes<A>];
    sum.store(values);
    for (int64_t lane = skipped; lane < kLanes<A>; ++lane) total[lane] += values[lane];
  }

  // A column some of whose taps may be outside, and any number of channels.
  void pixel(const Line& line, int64_t column) const {
    for (int i = 0; i < 3; ++i) {
      for (int t = 0; t < columns_.count; ++t) {
        const int64_t position = column * columns_.step + columns_.offset[t];
        if (line.rows[i] == nullptr || !columns_.reads(position)) continue;
        const T *grad = line.grad_out + column * channels_, *x = line.rows[i] + position * channels_;
        A* sums = line.sums + (3 * i + columns_.tap[t]) * channels_;
        for (int64_t c = 0; c < channels_; c += kLanes<A>) {
          const int64_t lanes = std::min(kLanes<A>, channels_ - c);
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

// The rows of the output of all samples in blocks, and where they and those of the map are.
class RowBlocks {
 public:
  explicit RowBlocks(const DepthwiseConv2dShape& shape)
      : height_(shape.out_height()),
        rows_(shape.batch * height_),
        length_(std::clamp<int64_t>(kBlockValues / (shape.out_width() * shape.channels), 1, kBlockRows)) {}

  int64_t count() const { return (rows_ + length_ - 1) / length_; }

  // Calls function(block, sample, row) for every row, the blocks in parallel.
  template <typename Function>
  void for_each(const Function& function) const {
    at::parallel_for(0, count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin * length_; row < std::min(end * length_, rows_); ++row) {
        function(row / length_, row / height_, row % height_);
      }
    });
  }

 private:
  int64_t height_, rows_, length_;
};

template <typename T>
void forward(const DepthwiseConv2d& args) {
  const DepthwiseConv2dShape& shape = args.shape;
  const TapMatrix<T> taps(args.weight, shape.channels);
  const Gather<T> convolution(
      forward_taps(shape.height, shape.stride, shape.dilation), forward_taps(shape.width, shape.stride, shape.dilation),
      taps, shape.channels);
  const int64_t row = shape.width * shape.channels, out_row = shape.out_width() * shape.channels;
  RowBlocks(shape).for_each([&](int64_t /*block*/, int64_t sample, int64_t y) {
    const T* x = static_cast<const T*>(args.x) + sample * shape.height * row;
    convolution.run(x, y, static_cast<T*>(args.out) + (sample * shape.out_height() + y) * out_row);
  });
}

template <typename T>
class Backward {
  using A = acc_t<T>;

 public:
  explicit Backward(const DepthwiseConv2dBackward& args)
      : args_(args),
        shape_(args.shape),
        blocks_(shape_),
        taps_(args.weight, shape_.channels),
        map_gradient_(
            backward_taps(shape_.height, shape_.stride, shape_.dilation),
            backward_taps(shape_.width, shape_.stride, shape_.dilation), taps_, shape_.channels),
        weight_gradient_(shape_),
        sums_(args.grad_weight == nullptr ? 0 : blocks_.count() * 9 * shape_.channels) {}

  void run() {
    blocks_.for_each([&](int64_t block, int64_t sample, int64_t y) { row(block, sample, y); });
    if (args_.grad_weight != nullptr) join();
  }

 private:
  // The weight's gradient of row y of grad_out, and the rows of the map from its center on to that of the next.
  void row(int64_t block, int64_t sample, int64_t y) {
    const int64_t width = shape_.width * shape_.channels, out_width = shape_.out_width() * shape_.channels;
    const T* grad_out = static_cast<const T*>(args_.grad_out) + sample * shape_.out_height() * out_width;
    const int64_t map = sample * shape_.height * width;
    if (args_.grad_weight != nullptr) {
      A* sums = sums_.data() + block * 9 * shape_.channels;
      weight_gradient_.run(grad_out + y * out_width, static_cast<const T*>(args_.x) + map, y, sums);
    }
    if (args_.grad_x == nullptr) return;
    const int64_t end = std::min((y + 1) * shape_.stride, shape_.height);
    for (int64_t position = y * shape_.stride; position < end; ++position) {
      map_gradient_.run(grad_out, position, static_cast<T*>(args_.grad_x) + map + position * width);
    }
  }

  // The blocks' sums in their order.
  void join() const {
    const int64_t numbers = 9 * shape_.channels;
    std::vector<double> totals(numbers);
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      for (int64_t i = 0; i < numbers; ++i) totals[i] += sums_[block * numbers + i];
    }
    for (int64_t c = 0; c < shape_.channels; ++c) {
      for (int t = 0; t < 9; ++t) {
        static_cast<T*>(args_.grad_weight)[9 * c + t] = static_cast<T>(static_cast<A>(totals[t * shape_.channels + c]));
      }
    }
  }

  const DepthwiseConv2dBackward& args_;
  const DepthwiseConv2dShape& shape_;
  RowBlocks blocks_;
  TapMatrix<T> taps_;
  Gather<T> map_gradient_;
  WeightGradient<T> weight_gradient_;
  std::vector<A> sums_;  // [blocks, 9, C], zero at first
};

}  // namespace

void depthwise_conv2d_forward(const DepthwiseConv2d& args) {
  with_dtype(args.shape.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void depthwise_conv2d_backward(const DepthwiseConv2dBackward& args) {
  with_dtype(args.shape.dtype, [&](auto element) { Backward<decltype(element)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

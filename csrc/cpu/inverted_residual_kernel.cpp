// Inverted residual block on an NHWC map, some rows of the output at a time: the expanded rows that they need stay in a
// ring in the cache of one core, and are never whole in memory. Threads share the rows of the output.
#include "cpu/inverted_residual_kernel.h"

#include "cpu/depthwise.h"
#include "cpu/grain.h"
#include "cpu/packed_dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockPixels = 96;  // of the output, that go through the last product at once

template <typename W>
class Block {
 public:
  Block(const InvertedResidual& args, const InvertedResidualWeights<W>& weights)
      : args_(args),
        shape_(args.shape),
        weights_(weights),
        row_shape_{shape_.width, shape_.out_width(), shape_.hidden, shape_.stride, shape_.dilation},
        row_weights_{weights.taps, weights.taps_bias, round_up(shape_.hidden, kPackedColumns)},
        rows_(std::clamp<int64_t>(kBlockPixels / shape_.out_width(), 1, shape_.out_height())),
        slots_((rows_ - 1) * shape_.stride + 2 * shape_.dilation + 1),
        hidden_stride_(padded_pixel<float>(shape_.hidden)),
        filtered_stride_(padded_pixel<W>(shape_.hidden)),
        input_stride_(padded_inputs<W>(shape_.in_channels)),
        floats_((slots_ + 1) * expanded_row() + result_size()),
        elements_(Workspace<W>::padded(filtered_size()) + input_size()),
        expanded_(floats_.take((slots_ + 1) * expanded_row())),
        result_(floats_.take(result_size())),
        filtered_(elements_.take(filtered_size())),
        input_(elements_.take(input_size())) {
    // What pads the channels is multiplied with zeros.
    for (int64_t pixel = 0; pixel < slots_ * shape_.width; ++pixel) {
      float* row = expanded_ + pixel * hidden_stride_;
      std::fill(row + shape_.hidden, row + hidden_stride_, 0.0f);
    }
    std::fill_n(expanded_ + slots_ * expanded_row(), expanded_row(), 0.0f);
    std::fill_n(filtered_, padded_inputs<W>(shape_.hidden) == shape_.hidden ? 0 : filtered_size(), W(0));
    std::fill_n(input_, input_size(), W(0));
  }

  // Rows [begin, end) of the output, those of all samples one after another.
  void run(int64_t begin, int64_t end) {
    const int64_t height = shape_.out_height();
    while (begin < end) {
      const int64_t y = begin % height;
      const int64_t count = std::min({rows_, end - begin, height - y});
      expand(begin / height, y, count);
      for (int64_t i = 0; i < count; ++i) filter(y + i, i);
      project(begin, count);
      begin += count;
    }
  }

 private:
  bool reads_in_place() const {
    return args_.dtype == c10::CppTypeToScalarType<W>::value && input_stride_ == shape_.in_channels;
  }
  bool writes_in_place() const { return args_.dtype == at::kFloat; }
  int64_t expanded_row() const { return shape_.width * hidden_stride_; }
  int64_t filtered_size() const { return rows_ * row_shape_.out_width * filtered_stride_; }
  int64_t result_size() const { return writes_in_place() ? 0 : rows_ * row_shape_.out_width * shape_.out_channels; }
  int64_t input_size() const { return reads_in_place() ? 0 : slots_ * shape_.width * input_stride_; }

  // A row of the expanded map, or one of zeros.
  float* expanded(int64_t y) const {
    const bool inside = y >= 0 && y < shape_.height;
    return expanded_ + (inside ? y % slots_ : slots_) * expanded_row();
  }

  // Brings the expanded rows that `count` rows of the output need, from y on, into the ring.
  void expand(int64_t sample, int64_t y, int64_t count) {
    const int64_t first = std::max<int64_t>(y * shape_.stride - shape_.dilation, 0);
    const int64_t last = std::min((y + count - 1) * shape_.stride + shape_.dilation + 1, shape_.height);
    if (sample != sample_ || first > next_) next_ = first;
    sample_ = sample;
    while (next_ < last) {
      const int64_t rows = std::min(last - next_, slots_ - next_ % slots_);
      const W* input = input_rows(sample * shape_.height + next_, rows);
      linear_(
          weights_.expand, rows * shape_.width, input, input_stride_, expanded(next_), hidden_stride_,
          AddBiasSilu<W>(weights_.expand.bias));
      next_ += rows;
    }
  }

  const W* input_rows(int64_t row, int64_t count) {
    const int64_t pixels = count * shape_.width, channels = shape_.in_channels;
    const int64_t offset = row * shape_.width * channels;
    if (reads_in_place()) return static_cast<const W*>(args_.x) + offset;
    with_storage_dtype(args_.dtype, [&](auto element) {
      const auto* x = static_cast<const decltype(element)*>(args_.x) + offset;
      for (int64_t i = 0; i < pixels; ++i) convert_row(x + i * channels, input_ + i * input_stride_, channels);
    });
    return input_;
  }

  // Depthwise convolution: row y of the output, as row `index` of filtered_.
  void filter(int64_t y, int64_t index) {
    const int64_t center = y * shape_.stride;
    const float* const rows[3] = {
        expanded(center - shape_.dilation), expanded(center), expanded(center + shape_.dilation)};
    W* out = filtered_ + index * row_shape_.out_width * filtered_stride_;
    DepthwiseRow<W, true>(row_shape_, row_weights_, rows, hidden_stride_, out, filtered_stride_).run();
  }

  void project(int64_t row, int64_t count) {
    const int64_t pixels = count * row_shape_.out_width, channels = shape_.out_channels, size = pixels * channels;
    const int64_t offset = row * row_shape_.out_width * channels;
    float* result = writes_in_place() ? static_cast<float*>(args_.out) + offset : result_;
    if (args_.residual) {
      with_storage_dtype(args_.dtype, [&](auto element) {
        convert_row(static_cast<const decltype(element)*>(args_.x) + offset, result, size);
      });
      project_into(pixels, result, AddBiasToResidual(weights_.project.bias));
    } else {
      project_into(pixels, result, AddBias(weights_.project.bias));
    }
    if (writes_in_place()) return;
    with_storage_dtype(args_.dtype, [&](auto element) {
      convert_row(result, static_cast<decltype(element)*>(args_.out) + offset, size);
    });
  }

  template <typename Epilogue>
  void project_into(int64_t pixels, float* result, const Epilogue& epilogue) {
    linear_(weights_.project, pixels, filtered_, filtered_stride_, result, shape_.out_channels, epilogue);
  }

  const InvertedResidual& args_;
  const InvertedResidualShape& shape_;
  const InvertedResidualWeights<W>& weights_;
  DepthwiseShape row_shape_;
  DepthwiseWeights row_weights_;
  int64_t rows_, slots_;  // rows of the output at a time, and expanded rows that they need
  int64_t hidden_stride_, filtered_stride_, input_stride_;
  int64_t sample_ = -1, next_ = 0;  // the next row to expand
  Workspace<float> floats_;
  Workspace<W> elements_;
  float* expanded_;  // [slots_ + 1, width, hidden_stride_]
  float* result_;    // [rows_ * out_width, out_channels] of 16-bit maps
  W* filtered_;      // [rows_ * out_width, filtered_stride_]
  W* input_;         // [slots_ * width, input_stride_]
  LinearRunner<W> linear_;
};

}  // namespace

void inverted_residual(const InvertedResidual& args) {
  with_packed_dtype(args.packed_dtype, [&](auto weight) {
    using W = decltype(weight);
    const InvertedResidualShape& shape = args.shape;
    const InvertedResidualWeights<W> weights(args.packed, shape);
    const int64_t flops =
        2 * shape.hidden * shape.out_width() * (shape.in_channels * shape.stride + shape.out_channels);
    at::parallel_for(0, shape.batch * shape.out_height(), grain_of_flops(flops), [&](int64_t begin, int64_t end) {
      Block<W>(args, weights).run(begin, end);
    });
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

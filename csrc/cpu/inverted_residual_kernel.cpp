// Inverted residual block on an NHWC map, some rows of the output at a time: the expanded rows that they need stay in
// rings in the cache of one core, and are never whole in memory. A panel of hidden channels at a time is expanded and
// filtered, so that what the filter reads was just written. Threads share the rows of the output.
#include "cpu/inverted_residual_kernel.h"

#include "cpu/depthwise.h"
#include "cpu/grain.h"
#include "cpu/packed_dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockPixels = 128;  // of the output, that go through the last product at once

// Adds a map of whole vectors of channels too.
template <typename W>
struct AddBiasAndMap : AddBias<float> {
  const W* map;
  int64_t stride;

  AddBiasAndMap(const float* bias, const W* map, int64_t stride) : AddBias(bias), map(map), stride(stride) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t column, const Vec<T>& value) const {
    return AddBias::operator()<T>(row, column, value) + load_as<T>(map + row * stride + column);
  }
};

template <typename W>
class Block {
 public:
  Block(const InvertedResidual& args, const InvertedResidualWeights<W>& weights)
      : args_(args),
        shape_(args.shape),
        weights_(weights),
        rows_(std::clamp<int64_t>(kBlockPixels / shape_.out_width(), 1, shape_.out_height())),
        slots_(2 * shape_.dilation + 1),
        panels_(round_up(shape_.hidden, kPackedColumns) / kPackedColumns),
        filtered_stride_(padded_pixel<W>(shape_.hidden)),
        input_stride_(reads_in_place() ? shape_.in_channels : padded_inputs<W>(shape_.in_channels)),
        floats_((panels_ * slots_ + 1) * expanded_row() + result_size()),
        elements_(Workspace<W>::padded(filtered_size()) + input_size()),
        expanded_(floats_.take(panels_ * slots_ * expanded_row())),
        zero_row_(floats_.take(expanded_row())),
        result_(floats_.take(result_size())),
        filtered_(elements_.take(filtered_size())),
        input_(elements_.take(input_size())) {
    std::fill_n(zero_row_, expanded_row(), 0.0f);
    const int64_t side = shape_.dilation * kPackedColumns;
    for (int64_t row = 0; row < panels_ * slots_; ++row) {
      float* begin = expanded_ + row * expanded_row();
      std::fill_n(begin, side, 0.0f);
      std::fill_n(begin + expanded_row() - side, side, 0.0f);
    }
    // What pads the channels is multiplied with zeros.
    if (shape_.hidden % kPackedColumns != 0) std::fill_n(ring(panels_ - 1), slots_ * expanded_row(), 0.0f);
    std::fill_n(filtered_, padded_inputs<W>(shape_.hidden) == shape_.hidden ? 0 : filtered_size(), W(0));
    std::fill_n(input_, input_size(), W(0));
  }

  // Rows [begin, end) of the output, those of all samples one after another.
  void run(int64_t begin, int64_t end) {
    const int64_t height = shape_.out_height();
    while (begin < end) {
      const int64_t y = begin % height;
      const int64_t count = std::min({rows_, end - begin, height - y});
      const FreshRows fresh = fresh_rows(begin / height, y, count);
      for (int64_t panel = 0; panel < panels_; ++panel) {
        int64_t row = fresh.first;
        for (int64_t i = 0; i < count; ++i) {
          const int64_t last = window_end(y + i);
          expand(panel, fresh, row, last);
          filter(panel, y + i, i);
          row = std::max(row, last);
        }
      }
      project(begin, count);
      begin += count;
    }
  }

 private:
  bool reads_in_place() const {
    return args_.dtype == c10::CppTypeToScalarType<W>::value && reads_unpadded<W>(shape_.in_channels);
  }
  bool writes_in_place() const { return args_.dtype == at::kFloat; }
  // With zeros on either side.
  int64_t expanded_row() const { return (shape_.width + 2 * shape_.dilation) * kPackedColumns; }
  int64_t filtered_size() const { return rows_ * shape_.out_width() * filtered_stride_; }
  int64_t result_size() const { return writes_in_place() ? 0 : rows_ * shape_.out_width() * shape_.out_channels; }
  int64_t input_size() const {
    return reads_in_place() ? 0 : (rows_ * shape_.stride + slots_) * shape_.width * input_stride_;
  }

  // Rows of the input, those of a sample, that are not in the rings yet.
  struct FreshRows {
    int64_t first;
    const W* input;
  };

  float* ring(int64_t panel) const { return expanded_ + panel * slots_ * expanded_row(); }
  // The first pixel of a row of a panel of the expanded map, or of one of zeros.
  float* expanded(int64_t panel, int64_t y) const {
    const bool inside = y >= 0 && y < shape_.height;
    return (inside ? ring(panel) + y % slots_ * expanded_row() : zero_row_) + shape_.dilation * kPackedColumns;
  }

  // The row behind those that row y of the output needs.
  int64_t window_end(int64_t y) const { return std::min(y * shape_.stride + shape_.dilation + 1, shape_.height); }

  // What `count` rows of the output need, from y on.
  FreshRows fresh_rows(int64_t sample, int64_t y, int64_t count) {
    const int64_t first = std::max<int64_t>(y * shape_.stride - shape_.dilation, 0);
    const int64_t last = window_end(y + count - 1);
    const int64_t fresh = sample == sample_ ? std::max(first, std::min(next_, last)) : first;
    sample_ = sample;
    next_ = std::max(fresh, last);
    return {fresh, input_rows(sample * shape_.height + fresh, next_ - fresh)};
  }

  // Rows [row, last) of a panel.
  void expand(int64_t panel, const FreshRows& fresh, int64_t row, int64_t last) {
    const int64_t first = panel * kPackedColumns;
    const PackedLinear<W>& whole = weights_.expand;
    const PackedLinear<W> layer{
        whole.weight + first * padded_inputs<W>(whole.inputs), whole.bias + first, whole.inputs,
        std::min(kPackedColumns, whole.outputs - first)};
    for (; row < last; ++row) {
      const W* input = fresh.input + (row - fresh.first) * shape_.width * input_stride_;
      linear_(
          layer, shape_.width, input, input_stride_, expanded(panel, row), kPackedColumns, AddBiasSilu<W>(layer.bias));
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

  // Depthwise convolution of a panel: row y of the output, as row `index` of filtered_.
  void filter(int64_t panel, int64_t y, int64_t index) {
    const int64_t center = y * shape_.stride, first = panel * kPackedColumns;
    const float* const rows[3] = {
        expanded(panel, center - shape_.dilation), expanded(panel, center), expanded(panel, center + shape_.dilation)};
    const DepthwiseShape shape{
        shape_.width, shape_.out_width(), std::min(kPackedColumns, shape_.hidden - first), shape_.stride,
        shape_.dilation};
    const DepthwiseWeights weights{weights_.taps + first, weights_.taps_bias + first, panels_ * kPackedColumns};
    W* out = filtered_ + index * shape_.out_width() * filtered_stride_ + first;
    DepthwiseRow<W, true>(shape, weights, rows, kPackedColumns, out, filtered_stride_).run(true);
  }

  void project(int64_t row, int64_t count) {
    const int64_t pixels = count * shape_.out_width(), size = pixels * shape_.out_channels;
    const int64_t offset = row * shape_.out_width() * shape_.out_channels;
    if (args_.dtype == c10::CppTypeToScalarType<W>::value && shape_.out_channels % Vec<float>::size() == 0) {
      return project_to_map(pixels, static_cast<const W*>(args_.x) + offset, static_cast<W*>(args_.out) + offset);
    }
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

  // With a map in the type of the products.
  void project_to_map(int64_t pixels, const W* x, W* out) {
    if (args_.residual) {
      project_into(pixels, out, AddBiasAndMap<W>(weights_.project.bias, x, shape_.out_channels));
    } else {
      project_into(pixels, out, AddBias(weights_.project.bias));
    }
  }

  template <typename C, typename Epilogue>
  void project_into(int64_t pixels, C* result, const Epilogue& epilogue) {
    linear_(weights_.project, pixels, filtered_, filtered_stride_, result, shape_.out_channels, epilogue);
  }

  const InvertedResidual& args_;
  const InvertedResidualShape& shape_;
  const InvertedResidualWeights<W>& weights_;
  int64_t rows_, slots_;  // rows of the output at a time, and expanded rows that one of them needs
  int64_t panels_;        // of hidden channels
  int64_t filtered_stride_, input_stride_;
  int64_t sample_ = -1, next_ = 0;  // the next row to expand
  Workspace<float> floats_;
  Workspace<W> elements_;
  float* expanded_;  // a ring for each panel: [panels_, slots_, padded width, kPackedColumns]
  float* zero_row_;  // [padded width, kPackedColumns]
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

// 3x3 depthwise convolution on NHWC maps and its gradients, bound by memory: the gradient of the map is a convolution
// of grad_out (depthwise_taps.h), and both gradients are computed row after row while the rows are in cache. Threads
// share blocks of rows, whose sums do not depend on the threads.
#include "cpu/depthwise_conv2d_kernel.h"

#include "cpu/depthwise_gather.h"
#include "cpu/depthwise_weight_gradient.h"
#include "cpu/dtypes.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockValues = 65536;  // of grad_out in a block of rows
constexpr int64_t kBlockRows = 64;       // at most

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

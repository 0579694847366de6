// 3x3 depthwise convolution on NHWC maps and its gradients, bound by memory: the gradient of the map is a convolution
// of grad_out (depthwise_taps.h), and both gradients are computed row after row while the rows are in cache. Threads
// share blocks of rows, whose sums do not depend on the threads. The input may be a normalised or activated x, of which
// only the rows of a window exist, in a thread's cache.
#include "cpu/depthwise_conv2d_kernel.h"

#include "cpu/activated_pixels.h"
#include "cpu/depthwise_gather.h"
#include "cpu/depthwise_weight_gradient.h"
#include "cpu/dtypes.h"
#include "cpu/token_io.h"

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

  // Calls function(input, block, sample, row) for every row, the blocks in parallel; input: of a thread.
  template <typename MakeInput, typename Function>
  void for_each(const MakeInput& make_input, const Function& function) const {
    at::parallel_for(0, count(), 1, [&](int64_t begin, int64_t end) {
      auto input = make_input();
      for (int64_t row = begin * length_; row < std::min(end * length_, rows_); ++row) {
        function(input, row / length_, row / height_, row % height_);
      }
    });
  }

 private:
  int64_t height_, rows_, length_;
};

// The rows of the map as the convolution reads them: its own, or activated ones, of which a window is kept.
template <typename T>
class InputRows {
 public:
  InputRows(const DepthwiseConv2dShape& shape, const void* x, const ActivatedPixels<T>& activation)
      : x_(static_cast<const T*>(x)),
        width_(shape.width),
        row_size_(shape.width * shape.channels),
        sample_rows_(shape.height),
        activation_(activation),
        window_(std::min(2 * shape.dilation + 1, shape.height)),
        memory_(activation.any() ? window_ * row_size_ : 0),
        rows_(memory_.take(0)),
        kept_(window_, -1) {}

  // Row y of a sample of x itself.
  const T* raw(int64_t sample, int64_t y) const { return x_ + (sample * sample_rows_ + y) * row_size_; }

  const T* at(int64_t sample, int64_t y) {
    if (!activation_.any()) return raw(sample, y);
    const int64_t slot = y % window_, index = sample * sample_rows_ + y;
    T* row = rows_ + slot * row_size_;
    if (kept_[slot] != index) {
      activation_.read(raw(sample, y), width_, row);
      kept_[slot] = index;
    }
    return row;
  }

 private:
  const T* x_;
  int64_t width_, row_size_, sample_rows_;
  const ActivatedPixels<T>& activation_;
  int64_t window_;
  Workspace<T> memory_;
  T* rows_;                    // [window_, W, C]
  std::vector<int64_t> kept_;  // which row of all samples a slot holds
};

template <typename T>
void forward(const DepthwiseConv2d& args) {
  const DepthwiseConv2dShape& shape = args.shape;
  const TapMatrix<T> taps(args.weight, shape.channels);
  const Gather<T> convolution(
      forward_taps(shape.height, shape.stride, shape.dilation), forward_taps(shape.width, shape.stride, shape.dilation),
      taps, shape.channels);
  const ActivatedPixels<T> activation(args.activation, shape.channels);
  const auto make_input = [&] { return InputRows<T>(shape, args.x, activation); };
  RowBlocks(shape).for_each(make_input, [&](InputRows<T>& input, int64_t /*block*/, int64_t sample, int64_t y) {
    T* out = static_cast<T*>(args.out) + (sample * shape.out_height() + y) * shape.out_width() * shape.channels;
    convolution.run([&](int64_t row) { return input.at(sample, row); }, y, out);
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
        activation_(args.activation, shape_.channels),
        sums_(args.grad_weight == nullptr ? 0 : blocks_.count() * 9 * shape_.channels),
        norm_sums_(args.norm_sums == nullptr ? 0 : blocks_.count() * 2 * shape_.channels) {}

  void run() {
    const auto make_input = [&] { return InputRows<T>(shape_, args_.x, activation_); };
    blocks_.for_each(make_input, [&](InputRows<T>& input, int64_t block, int64_t sample, int64_t y) {
      row(input, block, sample, y);
    });
    if (args_.grad_weight != nullptr) join();
    if (args_.norm_sums != nullptr) {
      add_blocks(norm_sums_.data(), blocks_.count(), 2 * shape_.channels, args_.norm_sums);
    }
  }

 private:
  // The weight's gradient of row y of grad_out, and the rows of the map from its center on to that of the next.
  void row(InputRows<T>& input, int64_t block, int64_t sample, int64_t y) {
    const int64_t width = shape_.width * shape_.channels, out_width = shape_.out_width() * shape_.channels;
    const T* grad_out = static_cast<const T*>(args_.grad_out) + sample * shape_.out_height() * out_width;
    if (args_.grad_weight != nullptr) {
      A* sums = sums_.data() + block * 9 * shape_.channels;
      weight_gradient_.run(grad_out + y * out_width, [&](int64_t row) { return input.at(sample, row); }, y, sums);
    }
    if (args_.grad_x == nullptr) return;
    const int64_t end = std::min((y + 1) * shape_.stride, shape_.height);
    for (int64_t position = y * shape_.stride; position < end; ++position) {
      T* grad_x = static_cast<T*>(args_.grad_x) + (sample * shape_.height + position) * width;
      map_gradient_.run([&](int64_t row) { return grad_out + row * out_width; }, position, grad_x);
      if (!activation_.any()) continue;
      A* norm_sums = norm_sums_.data() + block * 2 * shape_.channels;
      activation_.differentiate(input.raw(sample, position), shape_.width, grad_x, shape_.channels, norm_sums);
    }
  }

  // The blocks' sums in their order.
  void join() const {
    const int64_t numbers = 9 * shape_.channels;
    std::vector<double> totals(numbers);
    add_blocks(sums_.data(), blocks_.count(), numbers, totals.data());
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
  ActivatedPixels<T> activation_;
  std::vector<A> sums_;       // [blocks, 9, C], zero at first
  std::vector<A> norm_sums_;  // [blocks, 2, C], zero at first
};

}  // namespace

void depthwise_conv2d_forward(const DepthwiseConv2d& args) {
  with_dtype(args.shape.dtype, [&](auto element) { forward<decltype(element)>(args); });
}

void depthwise_conv2d_backward(const DepthwiseConv2dBackward& args) {
  with_dtype(args.shape.dtype, [&](auto element) { Backward<decltype(element)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Depthwise convolution on an NHWC map, row after row of the output. Threads share the rows.
#include "cpu/depthwise_convolution_kernel.h"

#include "cpu/depthwise.h"
#include "cpu/dtypes.h"
#include "cpu/grain.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

template <typename T, bool kSilu>
class Rows {
 public:
  Rows(const DepthwiseConvolution& args, const DepthwiseConvolutionWeights& weights)
      : args_(args),
        shape_(args.shape),
        row_shape_{shape_.width, shape_.out_width(), shape_.channels, shape_.stride, shape_.dilation},
        row_weights_{weights.taps, weights.bias, round_up(shape_.channels, kPackedColumns)},
        in_place_(std::is_same_v<T, float> && shape_.channels % Vec<float>::size() == 0),
        stride_(in_place_ ? shape_.channels : padded_pixel<float>(shape_.channels)),
        slots_(in_place_ ? 0 : 2 * shape_.dilation + 1),
        held_(slots_, -1),
        memory_((slots_ + 1) * row_size()),
        rows_(memory_.take((slots_ + 1) * row_size())) {
    std::fill_n(rows_, (slots_ + 1) * row_size(), 0.0f);
  }

  // Rows [begin, end) of the output, those of all samples one after another.
  void run(int64_t begin, int64_t end) {
    const int64_t height = shape_.out_height();
    for (; begin < end; ++begin) {
      const int64_t sample = begin / height, center = begin % height * shape_.stride;
      const float* const rows[3] = {
          row(sample, center - shape_.dilation), row(sample, center), row(sample, center + shape_.dilation)};
      T* out = static_cast<T*>(args_.out) + begin * row_shape_.out_width * shape_.channels;
      DepthwiseRow<T, kSilu>(row_shape_, row_weights_, rows, stride_, out, shape_.channels).run();
    }
  }

 private:
  int64_t row_size() const { return Workspace<float>::padded(shape_.width * stride_); }

  // A row of the map in float32, or one of zeros.
  const float* row(int64_t sample, int64_t y) {
    if (y < 0 || y >= shape_.height) return rows_ + slots_ * row_size();
    const int64_t index = sample * shape_.height + y;
    const T* x = static_cast<const T*>(args_.x) + index * shape_.width * shape_.channels;
    if constexpr (std::is_same_v<T, float>) {
      if (in_place_) return x;
    }
    const int64_t slot = y % slots_;
    float* target = rows_ + slot * row_size();
    if (held_[slot] != index) {
      for (int64_t i = 0; i < shape_.width; ++i) {
        convert_row(x + i * shape_.channels, target + i * stride_, shape_.channels);
      }
      held_[slot] = index;
    }
    return target;
  }

  const DepthwiseConvolution& args_;
  const DepthwiseConvolutionShape& shape_;
  DepthwiseShape row_shape_;
  DepthwiseWeights row_weights_;
  bool in_place_;
  int64_t stride_, slots_;     // elements of a pixel; rows of the ring
  std::vector<int64_t> held_;  // which row of the map each of them is
  Workspace<float> memory_;
  float* rows_;  // [slots_ + 1, row_size()], the last of zeros
};

}  // namespace

void depthwise_convolution(const DepthwiseConvolution& args) {
  with_storage_dtype(args.dtype, [&](auto element) {
    using T = decltype(element);
    const DepthwiseConvolutionShape& shape = args.shape;
    const DepthwiseConvolutionWeights weights(args.packed, shape.channels);
    const int64_t grain = grain_of_values(shape.channels * shape.out_width());
    at::parallel_for(0, shape.batch * shape.out_height(), grain, [&](int64_t begin, int64_t end) {
      if (args.silu) return Rows<T, true>(args, weights).run(begin, end);
      Rows<T, false>(args, weights).run(begin, end);
    });
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

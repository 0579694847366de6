// Dense convolution as a matrix product whose inputs are read where they lie: a pixel's window in an NHWC map is a
// piece of memory per row of the kernel, or per tap where it is dilated. Bands of rows are copied with their padding
// into the cache of one core, as NHWC whatever the strides of the map; a panel of outputs at a time then goes over the
// whole band. Threads share the rows of the output.
#include "cpu/convolution_kernel.h"

#include "cpu/grain.h"
#include "cpu/packed_dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBandBytes = 512 * 1024;  // of a core's L2, for a band of the input

template <typename W, typename T>
W converted(T value) {
  if constexpr (std::is_same_v<T, W>) return value;
  return static_cast<W>(static_cast<float>(value));
}

// row[j, c] = x[c, j] for a number of channels known in advance, which compiles to shuffles where columns are adjacent.
template <int64_t kChannels, typename T, typename W>
void interleave(const T* x, int64_t channel_stride, int64_t width, W* __restrict__ row) {
  constexpr int64_t kPixel = paired_inputs<W>(kChannels);
  for (int64_t j = 0; j < width; ++j) {
    for (int64_t c = 0; c < kChannels; ++c) row[j * kPixel + c] = converted<W>(x[c * channel_stride + j]);
  }
}

template <typename W>
class Bands {
 public:
  Bands(const Convolution& args, const ConvolutionWeights<W>& weights, int64_t rows)
      : args_(args),
        shape_(args.shape),
        layer_(weights.linear),
        pixel_(shape_.kernel_size == 1 ? padded_inputs<W>(shape_.in_channels) : paired_inputs<W>(shape_.in_channels)),
        pitch_((shape_.width + 2 * shape_.padding) * pixel_),
        out_row_(shape_.out_width() * shape_.out_channels),
        rows_(std::min(rows, rows_of_a_band())),
        in_place_(args.out_dtype == at::kFloat || args.out_dtype == kProducts),
        band_memory_(input_rows(rows_) * pitch_),
        band_(band_memory_.take(input_rows(rows_) * pitch_)),
        result_memory_(in_place_ ? 0 : rows_ * out_row_),
        result_(result_memory_.take(0)) {
    // The pixels of a row of the window follow each other, unless it is dilated.
    const int64_t columns = shape_.dilation == 1 ? 1 : shape_.kernel_size;
    for (int64_t i = 0; i < shape_.kernel_size; ++i) {
      for (int64_t j = 0; j < columns; ++j) taps_.push_back(shape_.dilation * (i * pitch_ + j * pixel_));
    }
    std::fill_n(band_, input_rows(rows_) * pitch_, W(0));
  }

  // Rows [begin, end) of the output, those of all samples one after another.
  void run(int64_t begin, int64_t end) {
    const int64_t height = shape_.out_height();
    while (begin < end) {
      const int64_t y = begin % height;
      const int64_t count = std::min({rows_, end - begin, height - y});
      load(begin / height, y * shape_.stride - shape_.padding, input_rows(count));
      write(begin, count);
      begin += count;
    }
  }

 private:
  static constexpr at::ScalarType kProducts = c10::CppTypeToScalarType<W>::value;

  int64_t input_rows(int64_t rows) const {
    return (rows - 1) * shape_.stride + shape_.dilation * (shape_.kernel_size - 1) + 1;
  }
  int64_t rows_of_a_band() const {
    const int64_t fit = kBandBytes / (pitch_ * static_cast<int64_t>(sizeof(W)));
    return std::max<int64_t>((fit - input_rows(1)) / shape_.stride + 1, 1);
  }

  // Rows [first, first + count) of a sample, rows outside of it being zeros.
  void load(int64_t sample, int64_t first, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      W* row = band_ + i * pitch_ + shape_.padding * pixel_;
      const int64_t y = first + i;
      if (y < 0 || y >= shape_.height) {
        std::fill_n(row, shape_.width * pixel_, W(0));
        continue;
      }
      with_storage_dtype(args_.dtype, [&](auto element) {
        load_row<decltype(element)>(args_.x, sample, y, row);
        load_row<decltype(element)>(args_.beside, sample, y, row + args_.x.channels);
      });
    }
  }

  template <typename T>
  void load_row(const ConvolutionInput& input, int64_t sample, int64_t y, W* row) const {
    const T* x = static_cast<const T*>(input.data) + sample * input.batch_stride + y * input.row_stride;
    const int64_t channels = input.channels, width = shape_.width;
    if (input.channel_stride == 1) {
      if (pixel_ == channels && input.column_stride == channels) return convert_row(x, row, width * channels);
      for (int64_t j = 0; j < width; ++j) convert_row(x + j * input.column_stride, row + j * pixel_, channels);
    } else if (shape_.in_channels == 3 && channels == 3 && input.column_stride == 1) {
      interleave<3>(x, input.channel_stride, width, row);
    } else {
      for (int64_t j = 0; j < width; ++j) {
        for (int64_t c = 0; c < channels; ++c) {
          row[j * pixel_ + c] = converted<W>(x[c * input.channel_stride + j * input.column_stride]);
        }
      }
    }
  }

  // Rows [first, first + count) of the output, from the band.
  void write(int64_t first, int64_t count) {
    const int64_t offset = first * out_row_;
    if (args_.out_dtype == at::kFloat) {
      activate(count, static_cast<float*>(args_.out) + offset);
    } else if (in_place_) {
      activate(count, static_cast<W*>(args_.out) + offset);
    } else {
      activate(count, result_);
      with_storage_dtype(args_.out_dtype, [&](auto element) {
        convert_row(result_, static_cast<decltype(element)*>(args_.out) + offset, count * out_row_);
      });
    }
  }

  template <typename C>
  void activate(int64_t rows, C* result) {
    if (args_.silu) return multiply(rows, result, AddBiasSilu<W>(layer_.bias));
    multiply(rows, result, AddBias(layer_.bias));
  }

  template <typename C, typename Epilogue>
  void multiply(int64_t rows, C* result, const Epilogue& epilogue) {
    const Pieces taps{static_cast<int64_t>(taps_.size()), taps_.data()};
    for (int64_t first = 0; first < shape_.out_channels; first += kPackedColumns) {
      for (int64_t i = 0; i < rows; ++i) {
        linear_.panel(
            layer_, first, taps, shape_.out_width(), band_ + i * shape_.stride * pitch_, shape_.stride * pixel_,
            result + i * out_row_, shape_.out_channels, epilogue);
      }
    }
  }

  const Convolution& args_;
  const ConvolutionShape& shape_;
  const PackedLinear<W>& layer_;
  int64_t pixel_, pitch_, out_row_;  // elements of a pixel, of a padded row, and of a row of the output
  int64_t rows_;                     // of the output, in a band
  bool in_place_;                    // the products write to the map
  std::vector<int64_t> taps_;        // where pieces of the window lie, from its first pixel
  Workspace<W> band_memory_;
  W* band_;  // [input rows, pitch_]
  Workspace<float> result_memory_;
  float* result_;  // [rows_, out_row_], where the products cannot write to the map
  LinearRunner<W> linear_;
};

// A 1x1 convolution is a linear layer on all pixels.
template <typename W, typename Epilogue>
void run_pointwise(const Convolution& args, const PackedLinear<W>& layer, int64_t grain, const Epilogue& epilogue) {
  const int64_t width = args.shape.width;
  at::parallel_for(0, args.shape.batch * args.shape.height, grain, [&](int64_t begin, int64_t end) {
    const W* x = static_cast<const W*>(args.x.data) + begin * width * layer.inputs;
    W* out = static_cast<W*>(args.out) + begin * width * layer.outputs;
    LinearRunner<W>()(layer, (end - begin) * width, x, layer.inputs, out, layer.outputs, epilogue);
  });
}

template <typename W>
void run(const Convolution& args) {
  const ConvolutionShape& shape = args.shape;
  const ConvolutionWeights<W> weights(args.packed, shape);
  const PackedLinear<W>& layer = weights.linear;
  const int64_t grain = grain_of_flops(2 * layer.inputs * shape.out_channels * shape.out_width());
  const bool pointwise = shape.kernel_size == 1 && shape.stride == 1 && shape.padding == 0 && args.beside.channels == 0;
  constexpr at::ScalarType kProducts = c10::CppTypeToScalarType<W>::value;
  const bool rows_of_products =
      args.dtype == kProducts && args.out_dtype == kProducts && reads_unpadded<W>(shape.in_channels);
  if (pointwise && rows_of_products) {
    if (args.silu) return run_pointwise<W>(args, layer, grain, AddBiasSilu<W>(layer.bias));
    return run_pointwise<W>(args, layer, grain, AddBias(layer.bias));
  }
  at::parallel_for(0, shape.batch * shape.out_height(), grain, [&](int64_t begin, int64_t end) {
    Bands<W>(args, weights, end - begin).run(begin, end);
  });
}

}  // namespace

void convolution(const Convolution& args) {
  with_packed_dtype(args.packed_dtype, [&](auto weight) { run<decltype(weight)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// A 1x1 convolution as matrix products on the rows of an NHWC map, with its gradients.
//   out = x weight^T + bias        grad_x = grad_out weight        grad_weight = grad_out^T x
// The input may be a normalised or activated x, which is computed as the rows are read: no map of it exists. grad_x is
// the gradient before SiLU, behind the norm.
// Backward, the rows are cut into segments, fixed by the shape: a thread takes a segment in chunks, whose grad_x and
// share of grad_weight are computed while they are in its cache. Each segment has sums of its own, added in order.
#include "cpu/pointwise_conv2d_kernel.h"

#include "cpu/activated_pixels.h"
#include "cpu/grain.h"
#include "cpu/linear.h"
#include "cpu/packed.h"
#include "cpu/products.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// Rows of a dense matrix of some dtype, as rows of W.
template <typename W>
struct Rows {
  void* data;
  at::ScalarType dtype;
  int64_t width;

  Rows(const void* data, at::ScalarType dtype, int64_t width)
      : data(const_cast<void*>(data)), dtype(dtype), width(width) {}

  bool in_place() const { return dtype == c10::CppTypeToScalarType<W>::value; }
  W* at(int64_t row) const { return static_cast<W*>(data) + row * width; }

  void read(int64_t first, int64_t count, W* rows, int64_t stride) const {
    with_elements([&](auto* elements) {
      for (int64_t i = 0; i < count; ++i) convert_row(elements + (first + i) * width, rows + i * stride, width);
    });
  }
  void read(int64_t first, int64_t count, const ActivatedPixels<W>& activation, W* rows, int64_t stride) const {
    if (!activation.any()) return read(first, count, rows, stride);
    with_elements([&](auto* elements) {
      for (int64_t i = 0; i < count; ++i) activation.read(elements + (first + i) * width, 1, rows + i * stride);
    });
  }
  // Turns gradients of activated rows into those before SiLU.
  void differentiate(
      int64_t first, int64_t count, const ActivatedPixels<W>& activation, W* grads, int64_t stride,
      acc_t<W>* sums) const {
    if (!activation.any()) return;
    with_elements(
        [&](auto* elements) { activation.differentiate(elements + first * width, count, grads, stride, sums); });
  }
  void write(int64_t first, int64_t count, const W* rows, int64_t stride) const {
    with_elements([&](auto* elements) {
      for (int64_t i = 0; i < count; ++i) convert_row(rows + i * stride, elements + (first + i) * width, width);
    });
  }

 private:
  template <typename Function>
  void with_elements(const Function& function) const {
    if constexpr (std::is_same_v<W, float>) {
      with_storage_dtype(dtype, [&](auto element) { function(static_cast<decltype(element)*>(data)); });
    } else {
      function(static_cast<W*>(data));
    }
  }
};

// c = a B + bias, with B packed once. Sums are in A, factors and results in W.
template <typename W>
class PackedMatrix {
  using A = acc_t<W>;
  using Factor = factor_t<W>;

 public:
  // B = weight^T, or B = weight; bias: of the columns of B, or null.
  PackedMatrix(const Rows<W>& weight, int64_t weight_rows, bool transposed, const void* bias)
      : depth_(transposed ? weight.width : weight_rows),
        columns_(transposed ? weight_rows : weight.width),
        memory_(packed_size<W>(columns_, depth_)),
        packed_(memory_.take(packed_size<W>(columns_, depth_))),
        bias_memory_(round_up(columns_, kPackedColumns)),
        bias_(bias_memory_.take(round_up(columns_, kPackedColumns))) {
    Workspace<W> converted(weight.in_place() ? 0 : weight_rows * weight.width);
    const W* matrix = weight.at(0);
    if (!weight.in_place()) {
      W* target = converted.take(0);
      weight.read(0, weight_rows, target, weight.width);
      matrix = target;
    }
    if (transposed) {
      pack_transposed(matrix, weight.width, columns_, depth_, packed_);
    } else {
      pack(matrix, weight.width, columns_, depth_, packed_);
    }
    std::fill_n(bias_, round_up(columns_, kPackedColumns), A(0));
    if (bias != nullptr) convert_row(static_cast<const A*>(bias), bias_, columns_);
  }

  // Rows [first, first + count) of c; through memory where c is of another dtype. finish(rows, stride) changes them.
  template <typename Finish>
  void multiply(
      int64_t count, const W* a, int64_t a_stride, const Rows<W>& c, int64_t first, W* memory, int64_t stride,
      Products<Factor>& products, const Finish& finish) const {
    W* rows = c.in_place() ? c.at(first) : memory;
    const int64_t row_stride = c.in_place() ? columns_ : stride;
    multiply(count, a, a_stride, rows, row_stride, products);
    finish(rows, row_stride);
    if (!c.in_place()) c.write(first, count, rows, row_stride);
  }

 private:
  void multiply(int64_t rows, const W* a, int64_t a_stride, W* c, int64_t c_stride, Products<Factor>& products) const {
    const int64_t depth = depth_ / kPerFactor<W>;
    const RowMajor<Factor> left{factors(a), a_stride / kPerFactor<W>};
    const auto right = PanelMatrix<Factor>::packed(factors<W>(packed_), depth);
    products(rows, columns_, depth, left, right, c, c_stride, AddBias<A>(bias_));
  }

  int64_t depth_, columns_;
  Workspace<W> memory_;
  W* packed_;
  Workspace<A> bias_memory_;
  A* bias_;
};

// Tiles of rows are copied on their way: the hardware prefetches one stream, but not the dozen rows of a product's
// tile.
template <typename W>
void forward(const PointwiseConv2d& args) {
  constexpr int64_t kTileRows = 96;
  const PointwiseShape& shape = args.shape;
  const Rows<W> x(args.x, shape.dtype, shape.inputs), out(args.out, shape.dtype, shape.outputs);
  const ActivatedPixels<W> activation(args.activation, shape.inputs);
  const PackedMatrix<W> matrix(Rows<W>(args.weight, shape.dtype, shape.inputs), shape.outputs, true, args.bias);
  const int64_t stride = padded_row<W>(shape.inputs), tiles = (shape.rows + kTileRows - 1) / kTileRows;
  const int64_t grain = grain_of_flops(2 * kTileRows * shape.inputs * shape.outputs);
  at::parallel_for(0, tiles, grain, [&](int64_t tile, int64_t end) {
    Workspace<W> memory(kTileRows * (stride + (out.in_place() ? 0 : shape.outputs)));
    W *rows = memory.take(kTileRows * stride), *result = memory.take(0);
    pad_rows(rows, kTileRows, shape.inputs, stride);
    Products<factor_t<W>> products;
    for (; tile < end; ++tile) {
      const int64_t first = tile * kTileRows, count = std::min(kTileRows, shape.rows - first);
      x.read(first, count, activation, rows, stride);
      matrix.multiply(count, rows, stride, out, first, result, shape.outputs, products, [](W*, int64_t) {});
    }
  });
}

template <typename W>
class Backward {
  using A = acc_t<W>;
  using Factor = factor_t<W>;
  static constexpr bool kPairs = kPerFactor<W> == 2;

 public:
  explicit Backward(const PointwiseConv2dBackward& args)
      : args_(args),
        shape_(args.shape),
        x_(args.x, shape_.dtype, shape_.inputs),
        grad_out_(args.grad_out, shape_.dtype, shape_.outputs),
        grad_x_(args.grad_x, shape_.dtype, shape_.inputs),
        weight_(args.weight, shape_.dtype, shape_.inputs),
        activation_(args.activation, shape_.inputs),
        segments_(count_segments()),
        chunk_(chunk_rows()),
        x_stride_(padded_row<W>(shape_.inputs)),
        grad_stride_(padded_row<W>(shape_.outputs)),
        sums_memory_(args.grad_weight == nullptr ? 0 : segments_ * weight_size()),
        sums_(sums_memory_.take(0)),
        bias_memory_(args.grad_bias == nullptr ? 0 : segments_ * shape_.outputs),
        bias_sums_(bias_memory_.take(0)),
        norm_memory_(args.norm_sums == nullptr ? 0 : segments_ * 2 * shape_.inputs),
        norm_sums_(norm_memory_.take(0)) {}

  void run() {
    if (args_.grad_x == nullptr) return run_segments(nullptr);
    const PackedMatrix<W> matrix(weight_, shape_.outputs, false, nullptr);
    run_segments(&matrix);
  }

 private:
  // Each segment reads and writes its sums, which takes as long as some hundred rows.
  static constexpr int64_t kMinSegmentRows = 128, kMaxSegments = 64, kSegmentRows = 1024;
  static constexpr int64_t kMinSegments = 8;
  static constexpr int64_t kMaxSums = int64_t(8) << 20;   // of all segments
  static constexpr int64_t kChunkBytes = 512 * 1024;      // of both operands
  static constexpr int64_t kDepth = 256 * kPerFactor<W>;  // rows of a product of grad_weight, at most

  int64_t weight_size() const { return shape_.outputs * shape_.inputs; }
  int64_t count_segments() const {
    const int64_t most = std::clamp<int64_t>(kMaxSums / weight_size(), 1, kMaxSegments);
    const int64_t wanted = std::max(std::min(kMinSegments, shape_.rows / kMinSegmentRows), shape_.rows / kSegmentRows);
    return std::clamp<int64_t>(wanted, 1, most);
  }
  int64_t chunk_rows() const {
    const int64_t row_bytes = (shape_.inputs + shape_.outputs) * static_cast<int64_t>(sizeof(W));
    return std::clamp<int64_t>(kChunkBytes / row_bytes / kTileInputs * kTileInputs, 128, kDepth);
  }
  // Even, so that only the last segment has a row without a partner.
  int64_t segment_begin(int64_t segment) const {
    return segment == segments_ ? shape_.rows : shape_.rows * segment / segments_ / 2 * 2;
  }

  void run_segments(const PackedMatrix<W>* matrix) {
    const int64_t flops = 4 * shape_.rows / segments_ * weight_size();
    at::parallel_for(0, segments_, grain_of_flops(flops), [&](int64_t segment, int64_t end) {
      Chunk chunk(*this);
      for (; segment < end; ++segment) run_segment(segment, matrix, chunk);
    });
    if (args_.grad_weight != nullptr) add_segments(sums_, weight_size(), static_cast<A*>(args_.grad_weight));
    if (args_.grad_bias != nullptr) add_segments(bias_sums_, shape_.outputs, static_cast<A*>(args_.grad_bias));
    if (args_.norm_sums != nullptr) add_blocks(norm_sums_, segments_, 2 * shape_.inputs, args_.norm_sums);
  }

  // Rows of a map in a thread's cache, and the factors that they are in products over the rows: in bfloat16 pairs of
  // rows.
  struct Operand {
    const W* rows;
    int64_t stride;
    const Factor* factors;
    int64_t factor_stride;
  };

  struct Chunk {
    explicit Chunk(const Backward& kernel)
        : memory(
              kernel.chunk_ * (2 * kernel.x_stride_ + 2 * kernel.grad_stride_) + kernel.zeros_width() +
              2 * kernel.x_stride_ + 256),
          x(memory.take(kernel.chunk_ * kernel.x_stride_)),
          grad_out(memory.take(kernel.chunk_ * kernel.grad_stride_)),
          grad_rows(memory.take(kernel.chunk_ * kernel.grad_stride_)),
          grad_x(memory.take(kernel.chunk_ * kernel.x_stride_)),
          zeros(memory.take(kernel.zeros_width())),
          pair(memory.take(2 * kernel.x_stride_)) {
      std::fill_n(zeros, kernel.zeros_width(), W(0));
      pad_rows(grad_rows, kernel.chunk_, kernel.shape_.outputs, kernel.grad_stride_);
    }

    Workspace<W> memory;
    W *x, *grad_out, *grad_rows, *grad_x, *zeros;
    W* pair;  // two activated rows of x
    Products<Factor> products;
  };

  int64_t zeros_width() const { return kPairs ? std::max(shape_.inputs, shape_.outputs) : 0; }

  void run_segment(int64_t segment, const PackedMatrix<W>* matrix, Chunk& chunk) {
    A *sums = sums_ + segment * weight_size(), *bias_sums = bias_sums_ + segment * shape_.outputs;
    A* norm_sums = norm_sums_ + segment * 2 * shape_.inputs;
    const bool want_weight = args_.grad_weight != nullptr, want_bias = args_.grad_bias != nullptr;
    if (want_weight) std::fill_n(sums, weight_size(), A(0));
    if (want_bias) std::fill_n(bias_sums, shape_.outputs, A(0));
    if (args_.norm_sums != nullptr) std::fill_n(norm_sums, 2 * shape_.inputs, A(0));
    const int64_t end = segment_begin(segment + 1);
    for (int64_t first = segment_begin(segment); first < end; first += chunk_) {
      const int64_t count = std::min(chunk_, end - first);
      const Operand grad_out = read(grad_out_, first, count, nullptr, chunk.grad_out, grad_stride_, chunk);
      if (matrix != nullptr) {
        const auto [rows, stride] = padded(grad_out, count, chunk.grad_rows);
        const auto finish = [&](W* grads, int64_t grads_stride) {
          x_.differentiate(first, count, activation_, grads, grads_stride, norm_sums);
        };
        matrix->multiply(count, rows, stride, grad_x_, first, chunk.grad_x, x_stride_, chunk.products, finish);
      }
      if (want_bias) add_rows(grad_out, count, bias_sums);
      if (!want_weight) continue;
      const Operand x = read(x_, first, count, &activation_, chunk.x, x_stride_, chunk);
      add_products(grad_out, x, count, sums, chunk.products);
    }
  }

  Operand read(
      const Rows<W>& map, int64_t first, int64_t count, const ActivatedPixels<W>* activation, W* memory, int64_t stride,
      [[maybe_unused]] const Chunk& chunk) const {
    if constexpr (kPairs) {
      auto* pairs = reinterpret_cast<Factor*>(memory);
      for (int64_t i = 0; i < count; i += 2) {
        const W* row = map.at(first + i);
        if (activation != nullptr && activation->any()) {
          map.read(first + i, std::min<int64_t>(2, count - i), *activation, chunk.pair, map.width);
          row = chunk.pair;
        }
        const W* next = i + 1 < count ? row + map.width : chunk.zeros;
        for (int64_t c = 0; c < map.width; c += Vec<A>::size()) {
          store_pairs(row + c, next + c, map.width - c, pairs + i / 2 * stride + c);
        }
      }
      const int64_t used = (count + 1) / 2, padded = padded_inputs<W>(count) / 2;
      std::fill(pairs + used * stride, pairs + padded * stride, Factor{});
      return {map.at(first), map.width, pairs, stride};
    } else {
      if (activation != nullptr) {
        map.read(first, count, *activation, memory, stride);
      } else {
        map.read(first, count, memory, stride);
      }
      return {memory, stride, memory, stride};
    }
  }

  // Rows of grad_out with zeros behind them, as a product reads them.
  std::pair<const W*, int64_t> padded(const Operand& grad_out, int64_t count, [[maybe_unused]] W* memory) const {
    if (reads_unpadded<W>(shape_.outputs)) return {grad_out.rows, grad_out.stride};
    for (int64_t i = 0; i < count; ++i) {
      convert_row(grad_out.rows + i * grad_out.stride, memory + i * grad_stride_, shape_.outputs);
    }
    return {memory, grad_stride_};
  }

  void add_rows(const Operand& grad_out, int64_t count, A* bias_sums) const {
    constexpr int64_t kLanes = Vec<A>::size();
    for (int64_t c = 0; c < shape_.outputs; c += kLanes) {
      const int64_t lanes = std::min(kLanes, shape_.outputs - c);
      Vec<A> sum(0);
      for (int64_t i = 0; i < count; ++i) sum = sum + load_as<A>(grad_out.rows + i * grad_out.stride + c, lanes);
      (Vec<A>::loadu(bias_sums + c, lanes) + sum).store(bias_sums + c, static_cast<int>(lanes));
    }
  }

  void add_products(
      const Operand& grad_out, const Operand& x, int64_t count, A* sums, Products<Factor>& products) const {
    const int64_t depth = (count + kPerFactor<W> - 1) / kPerFactor<W>;
    const ColumnMajor<Factor> left{grad_out.factors, grad_out.factor_stride};
    const auto right = PanelMatrix<Factor>::row_major(x.factors, x.factor_stride);
    products(shape_.outputs, shape_.inputs, depth, left, right, sums, shape_.inputs, Accumulate());
  }

  // total[i] = the sum over segments of sums[segment, i]
  void add_segments(const A* sums, int64_t size, A* total) const {
    at::parallel_for(0, size, grain_of_flops(segments_), [&](int64_t begin, int64_t end) {
      std::copy(sums + begin, sums + end, total + begin);
      for (int64_t segment = 1; segment < segments_; ++segment) {
        const A* share = sums + segment * size;
        for (int64_t i = begin; i < end; ++i) total[i] += share[i];
      }
    });
  }

  const PointwiseConv2dBackward& args_;
  const PointwiseShape& shape_;
  Rows<W> x_, grad_out_, grad_x_, weight_;
  ActivatedPixels<W> activation_;
  int64_t segments_, chunk_;
  int64_t x_stride_, grad_stride_;  // elements of a row in a chunk
  Workspace<A> sums_memory_;
  A* sums_;  // [segments_, outputs, inputs]
  Workspace<A> bias_memory_;
  A* bias_sums_;  // [segments_, outputs]
  Workspace<A> norm_memory_;
  A* norm_sums_;  // [segments_, 2, inputs]
};

// Calls function with a value of the type of the products' factors.
template <typename Function>
void with_factors(const PointwiseShape& shape, const Function& function) {
#if defined(CPU_CAPABILITY_AVX512_BF16)
  const bool even = shape.inputs % 2 == 0 && shape.outputs % 2 == 0;
  if (even && has_fast_bfloat16()) return function(c10::BFloat16());
#else
  if (shape.dtype == at::kDouble) return function(double());
#endif
  function(float());
}

}  // namespace

void pointwise_conv2d_forward(const PointwiseConv2d& args) {
  with_factors(args.shape, [&](auto factor) { forward<decltype(factor)>(args); });
}

void pointwise_conv2d_backward(const PointwiseConv2dBackward& args) {
  with_factors(args.shape, [&](auto factor) { Backward<decltype(factor)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

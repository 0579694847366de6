// The mean of all pixels and a linear layer on it. Threads share the samples first, and then the outputs: every panel
// of weights is read once, by one of them.
#include "cpu/pooled_linear_kernel.h"

#include "cpu/grain.h"
#include "cpu/packed_dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// mean[channels] of a sample. Rows have sums of their own, which round less.
template <typename T>
void average(const PooledLinear& args, const T* x, float* mean) {
  const Vec<float> pixels(static_cast<float>(args.height * args.width));
  for (int64_t c = 0; c < args.channels; c += Vec<float>::size()) {
    const int64_t lanes = std::min<int64_t>(Vec<float>::size(), args.channels - c);
    Vec<float> total(0);
    for (int64_t i = 0; i < args.height; ++i) {
      Vec<float> sum(0);
      for (int64_t j = 0; j < args.width; ++j) {
        sum = sum + load_as<float>(x + i * args.x.row_stride + j * args.x.column_stride + c, lanes);
      }
      total = total + sum;
    }
    (total / pixels).store(mean + c, static_cast<int>(lanes));
  }
}

// means[batch, inputs] in the dtype of the products, padded with zeros.
template <typename W>
void average_samples(const PooledLinear& args, int64_t inputs, W* means) {
  const int64_t grain = grain_of_values(args.channels * args.height * args.width);
  at::parallel_for(0, args.batch, grain, [&](int64_t begin, int64_t end) {
    Workspace<float> memory(args.channels);
    float* mean = memory.take(args.channels);
    for (int64_t b = begin; b < end; ++b) {
      with_storage_dtype(args.dtype, [&](auto element) {
        average(args, static_cast<const decltype(element)*>(args.x.data) + b * args.x.batch_stride, mean);
      });
      W* row = means + b * inputs;
      convert_row(mean, row, args.channels);
      std::fill(row + args.channels, row + inputs, W(0));
    }
  });
}

// Where pieces of the inputs begin, which have sums of their own: of equal, even length, about kPiece each.
std::vector<int64_t> piece_starts(int64_t inputs) {
  constexpr int64_t kPiece = 64;
  int64_t count = std::max<int64_t>(inputs / kPiece, 1);
  while (count > 1 && inputs % (2 * count) != 0) --count;
  std::vector<int64_t> starts(count);
  for (int64_t i = 0; i < count; ++i) starts[i] = i * (inputs / count);
  return starts;
}

template <typename W>
void run(const PooledLinear& args) {
  const int64_t inputs = padded_inputs<W>(args.channels), outputs = args.out_features;
  const auto layer = PackedReader<W>(static_cast<const W*>(args.packed)).linear(outputs, inputs);
  Workspace<W> means_memory(args.batch * inputs);
  W* means = means_memory.take(args.batch * inputs);
  average_samples(args, inputs, means);

  const bool in_place = args.dtype == at::kFloat;
  Workspace<float> result_memory(in_place ? 0 : args.batch * outputs);
  float* result = in_place ? static_cast<float*>(args.out) : result_memory.take(args.batch * outputs);
  const int64_t panels = (outputs + kPackedColumns - 1) / kPackedColumns;
  const int64_t flops = 2 * args.batch * inputs * kPackedColumns;
  const std::vector<int64_t> starts = piece_starts(inputs);
  const Pieces pieces{static_cast<int64_t>(starts.size()), starts.data()};
  at::parallel_for(0, panels, grain_of_flops(flops), [&](int64_t begin, int64_t end) {
    LinearRunner<W> linear;
    for (int64_t panel = begin; panel < end; ++panel) {
      linear.panel(
          layer, panel * kPackedColumns, pieces, args.batch, means, inputs, result, outputs, AddBias(layer.bias));
    }
  });
  if (in_place) return;
  with_storage_dtype(args.dtype, [&](auto element) {
    convert_row(result, static_cast<decltype(element)*>(args.out), args.batch * outputs);
  });
}

}  // namespace

void pooled_linear(const PooledLinear& args) {
  with_packed_dtype(args.packed_dtype, [&](auto weight) { run<decltype(weight)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

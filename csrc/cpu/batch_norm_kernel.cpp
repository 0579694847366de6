// BatchNorm with the statistics of the batch, and its SiLU, in as few passes over memory as there can be: forward reads
// x for the statistics, then once more for the result; backward reads x and the gradient for two sums a channel, then
// once more for grad_x. What lies between (normalised values, the activation's derivative) is computed again in
// registers. Threads share blocks of rows, whose sums do not depend on the threads.
#include "cpu/batch_norm_kernel.h"

#include "cpu/activated_pixels.h"
#include "cpu/channel_strips.h"
#include "cpu/dtypes.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kBlockValues = 16384;  // of a block of rows, which stays in L1 and L2 between its strips
constexpr int64_t kBlockRows = 128;      // at most: short sums round less

// The rows of a map in blocks.
class RowBlocks {
 public:
  explicit RowBlocks(const BatchNormShape& shape)
      : rows_(shape.rows), length_(std::clamp<int64_t>(kBlockValues / shape.channels, 16, kBlockRows)) {}

  int64_t count() const { return (rows_ + length_ - 1) / length_; }
  int64_t first(int64_t block) const { return block * length_; }
  int64_t rows(int64_t block) const { return std::min(length_, rows_ - first(block)); }

  // Calls function(block) in parallel.
  template <typename Function>
  void for_each(const Function& function) const {
    at::parallel_for(0, count(), 2, [&](int64_t begin, int64_t end) {
      for (int64_t block = begin; block < end; ++block) function(block);
    });
  }

 private:
  int64_t rows_, length_;
};

// Two numbers a channel of every block, [blocks, 2, C].
template <typename A>
class BlockSums {
 public:
  BlockSums(const RowBlocks& blocks, int64_t channels)
      : channels_(channels), sums_(2 * blocks.count() * channels), data_(sums_.take(0)) {}

  A* at(int64_t block, int which) const { return data_ + (2 * block + which) * channels_; }

 private:
  int64_t channels_;
  Workspace<A> sums_;
  A* data_;
};

template <typename T, bool kSilu>
class Forward {
  using A = acc_t<T>;

 public:
  explicit Forward(const BatchNorm& args)
      : args_(args), channels_(args.shape.channels), blocks_(args.shape), sums_(blocks_, channels_) {}

  void run() {
    blocks_.for_each([&](int64_t block) { measure(block); });
    join();
    if (args_.out == nullptr) return;
    const Affine<A> affine({args_.weight, args_.bias, args_.mean, args_.var, args_.shape.eps}, channels_);
    blocks_.for_each([&](int64_t block) { normalize(block, affine); });
  }

 private:
  const T* rows(int64_t block) const { return static_cast<const T*>(args_.x) + blocks_.first(block) * channels_; }

  // Mean of a block, and the sum of squared distances from it. The mean comes from distances from the first row: small
  // numbers, which round little.
  void measure(int64_t block) {
    const T* x = rows(block);
    const int64_t count = blocks_.rows(block);
    for_strips<A>(channels_, [&](auto vectors, int64_t c, int64_t last) {
      constexpr int kVectors = decltype(vectors)::value;
      const auto at = [&](int64_t row, int v) {
        return load_as<A>(x + row * channels_ + c + v * kLanes<A>, v == kVectors - 1 ? last : kLanes<A>);
      };
      Vec<A> mean[kVectors], sum[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) mean[v] = at(0, v), sum[v] = Vec<A>(0);
      for (int64_t i = 1; i < count; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[v] = sum[v] + (at(i, v) - mean[v]);
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        mean[v] = mean[v] + sum[v] / Vec<A>(static_cast<A>(count));
        sum[v] = Vec<A>(0);
      }
      for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const Vec<A> distance = at(i, v) - mean[v];
          sum[v] = at::vec::fmadd(distance, distance, sum[v]);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int lanes = static_cast<int>(v == kVectors - 1 ? last : kLanes<A>);
        mean[v].store(sums_.at(block, 0) + c + v * kLanes<A>, lanes);
        sum[v].store(sums_.at(block, 1) + c + v * kLanes<A>, lanes);
      }
    });
  }

  // Mean and variance of all blocks (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
  // sample variances", 1979).
  void join() {
    A *mean = static_cast<A*>(args_.mean), *var = static_cast<A*>(args_.var);
    const double total = static_cast<double>(args_.shape.rows);
    std::vector<double> means(channels_), squares(channels_);
    for_each_block([&](int64_t c, double count, double block_mean, double /*squares*/) {
      means[c] += count / total * block_mean;
    });
    for_each_block([&](int64_t c, double count, double block_mean, double block_squares) {
      squares[c] += block_squares + count * (block_mean - means[c]) * (block_mean - means[c]);
    });
    for (int64_t c = 0; c < channels_; ++c) {
      mean[c] = static_cast<A>(means[c]);
      var[c] = static_cast<A>(squares[c] / total);
    }
  }

  // Calls function(channel, rows, mean, sum of squared distances from it) for every block and channel.
  template <typename Function>
  void for_each_block(const Function& function) const {
    for (int64_t block = 0; block < blocks_.count(); ++block) {
      const double count = static_cast<double>(blocks_.rows(block));
      for (int64_t c = 0; c < channels_; ++c) function(c, count, sums_.at(block, 0)[c], sums_.at(block, 1)[c]);
    }
  }

  void normalize(int64_t block, const Affine<A>& affine) {
    const T* x = rows(block);
    T* out = static_cast<T*>(args_.out) + blocks_.first(block) * channels_;
    for_strips<A>(channels_, [&](auto vectors, int64_t c, int64_t last) {
      constexpr int kVectors = decltype(vectors)::value;
      Vec<A> scale[kVectors], shift[kVectors];
      load_strip(scale, affine.scale.data() + c, last);
      load_strip(shift, affine.shift.data() + c, last);
      for (int64_t i = 0; i < blocks_.rows(block); ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = i * channels_ + c + v * kLanes<A>, lanes = v == kVectors - 1 ? last : kLanes<A>;
          const Vec<A> value = at::vec::fmadd(load_as<A>(x + at, lanes), scale[v], shift[v]);
          store_as(kSilu ? value * sigmoid<T>(value) : value, out + at, lanes);
        }
      }
    });
  }

  const BatchNorm& args_;
  int64_t channels_;
  RowBlocks blocks_;
  BlockSums<A> sums_;
};

// With d the gradient of the normalised, scaled and shifted value: grad_bias = sum d, and with s = sum d (x - mean)
//   grad_weight = s / deviation        grad_x = scale (d - grad_bias / rows - (x - mean) s / (rows variance))
template <typename T, bool kSilu>
class Backward {
  using A = acc_t<T>;

 public:
  explicit Backward(const BatchNormBackward& args)
      : args_(args),
        channels_(args.shape.channels),
        blocks_(args.shape),
        sums_(blocks_, args.sums == nullptr ? channels_ : 0),
        affine_({args.weight, args.bias, args.mean, args.var, args.shape.eps}, channels_),
        grad_mean_(channels_),
        slope_(channels_) {}

  void run() {
    if (args_.sums == nullptr) {
      blocks_.for_each([&](int64_t block) { measure(block); });
      std::vector<double> totals(2 * channels_);
      add_blocks(sums_.at(0, 0), blocks_.count(), 2 * channels_, totals.data());
      differentiate_parameters(totals.data());
    } else {
      differentiate_parameters(args_.sums);
    }
    blocks_.for_each([&](int64_t block) { differentiate(block); });
  }

 private:
  // Of a strip of channels.
  template <int kVectors>
  struct Strip {
    Vec<A> scale[kVectors], shift[kVectors], mean[kVectors];

    Strip(const Affine<A>& affine, const A* means, int64_t c, int64_t last) {
      load_strip(scale, affine.scale.data() + c, last);
      load_strip(shift, affine.shift.data() + c, last);
      load_strip(mean, means + c, last);
    }
    // d, from the gradient behind the activation.
    Vec<A> gradient(int v, const Vec<A>& x, const Vec<A>& grad_out) const {
      if constexpr (!kSilu) return grad_out;
      return grad_out * silu_slope<T>(at::vec::fmadd(x, scale[v], shift[v]));
    }
  };

  const A* means() const { return static_cast<const A*>(args_.mean); }
  int64_t offset(int64_t block) const { return blocks_.first(block) * channels_; }

  void measure(int64_t block) {
    const T* x = static_cast<const T*>(args_.x) + offset(block);
    const T* grad_out = static_cast<const T*>(args_.grad_out) + offset(block);
    for_strips<A>(channels_, [&](auto vectors, int64_t c, int64_t last) {
      constexpr int kVectors = decltype(vectors)::value;
      const Strip<kVectors> strip(affine_, means(), c, last);
      Vec<A> sum[kVectors], product[kVectors];
      for (int v = 0; v < kVectors; ++v) sum[v] = product[v] = Vec<A>(0);
      for (int64_t i = 0; i < blocks_.rows(block); ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = i * channels_ + c + v * kLanes<A>, lanes = v == kVectors - 1 ? last : kLanes<A>;
          const Vec<A> value = load_as<A>(x + at, lanes);
          const Vec<A> gradient = strip.gradient(v, value, load_as<A>(grad_out + at, lanes));
          sum[v] = sum[v] + gradient;
          product[v] = at::vec::fmadd(gradient, value - strip.mean[v], product[v]);
        }
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int lanes = static_cast<int>(v == kVectors - 1 ? last : kLanes<A>);
        sum[v].store(sums_.at(block, 0) + c + v * kLanes<A>, lanes);
        product[v].store(sums_.at(block, 1) + c + v * kLanes<A>, lanes);
      }
    });
  }

  void differentiate_parameters(const double* sums) {
    const double* products = sums + channels_;
    const double rows = static_cast<double>(args_.shape.rows);
    A *grad_weight = static_cast<A*>(args_.grad_weight), *grad_bias = static_cast<A*>(args_.grad_bias);
    for (int64_t c = 0; c < channels_; ++c) {
      const double variance = static_cast<const A*>(args_.var)[c] + args_.shape.eps;
      grad_bias[c] = static_cast<A>(sums[c]);
      grad_weight[c] = static_cast<A>(products[c] / std::sqrt(variance));
      grad_mean_[c] = static_cast<A>(sums[c] / rows);
      slope_[c] = static_cast<A>(products[c] / (rows * variance));
    }
  }

  void differentiate(int64_t block) {
    const T* x = static_cast<const T*>(args_.x) + offset(block);
    const T* grad_out = static_cast<const T*>(args_.grad_out) + offset(block);
    T* grad_x = static_cast<T*>(args_.grad_x) + offset(block);
    for_strips<A>(channels_, [&](auto vectors, int64_t c, int64_t last) {
      constexpr int kVectors = decltype(vectors)::value;
      const Strip<kVectors> strip(affine_, means(), c, last);
      Vec<A> grad_mean[kVectors], slope[kVectors];
      load_strip(grad_mean, grad_mean_.data() + c, last);
      load_strip(slope, slope_.data() + c, last);
      for (int64_t i = 0; i < blocks_.rows(block); ++i) {
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          const int64_t at = i * channels_ + c + v * kLanes<A>, lanes = v == kVectors - 1 ? last : kLanes<A>;
          const Vec<A> value = load_as<A>(x + at, lanes);
          const Vec<A> gradient = strip.gradient(v, value, load_as<A>(grad_out + at, lanes)) - grad_mean[v];
          store_as(strip.scale[v] * (gradient - (value - strip.mean[v]) * slope[v]), grad_x + at, lanes);
        }
      }
    });
  }

  const BatchNormBackward& args_;
  int64_t channels_;
  RowBlocks blocks_;
  BlockSums<A> sums_;
  Affine<A> affine_;
  std::vector<A> grad_mean_, slope_;  // of d, over the rows; of d against x
};

// Calls run() of Kernel<T, silu>.
template <template <typename, bool> class Kernel, typename Arguments>
void run(const Arguments& args) {
  with_dtype(args.shape.dtype, [&](auto element) {
    using T = decltype(element);
    if (args.shape.silu) return Kernel<T, true>(args).run();
    Kernel<T, false>(args).run();
  });
}

}  // namespace

void batch_norm_forward(const BatchNorm& args) { run<Forward>(args); }

void batch_norm_backward(const BatchNormBackward& args) { run<Backward>(args); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY

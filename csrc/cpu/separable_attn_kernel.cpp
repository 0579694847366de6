// Separable self-attention, forward: pool the tokens with their scores, project the pooled vector to the context, then
// run value projection, relu, context and output projection tile by tile.
//
// Tokens lie on the vector lanes in the projections: the weights are read as they are, without packing.
#include "cpu/separable_attn_kernel.h"

#include "cpu/gemm.h"
#include "cpu/separable_attn_tile.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// e**x for x <= 0 (or NaN). The rounding of x * log2(e) is put back, for sums over many tokens would show it.
template <typename A>
Vec<A> exp_nonpositive(const Vec<A>& x) {
  const Vec<A> log2_e(static_cast<A>(kLog2E));
  const Vec<A> exponent = x * log2_e;
  const Vec<A> result = exp2_nonpositive<A>(exponent);
  const Vec<A> lost = at::vec::fmsub(x, log2_e, exponent) + x * Vec<A>(static_cast<A>(kLog2E - static_cast<A>(kLog2E)));
  const Vec<A> corrected = at::vec::fmadd(result, lost * Vec<A>(static_cast<A>(kLn2)), result);
  // Far below zero the correction is 0 * inf.
  return Vec<A>::blendv(corrected, result, result == Vec<A>(0));
}

template <typename A>
A exp_nonpositive(A x) {
  alignas(64) A lanes[Vec<A>::size()];
  exp_nonpositive<A>(Vec<A>(x)).store(lanes);
  return lanes[0];
}

// relu(value) * context of the lane's group, from the value projection without its bias.
template <typename A>
struct GatedValue : Overwrite {
  const A *bias, *context;
  const Tiles<A>& tiles;
  int64_t tile, channels;

  GatedValue(const A* bias, const A* context, const Tiles<A>& tiles, int64_t tile, int64_t channels)
      : bias(bias), context(context), tiles(tiles), tile(tile), channels(channels) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t lane, const Vec<T>& value) const {
    const Vec<T> gate(context[tiles.group(tile, lane) * channels + row]);
    return at::vec::maximum(value + Vec<T>(bias[row]), Vec<T>(0)) * gate;
  }
};

template <typename A>
struct AddBias : Overwrite {
  const A* bias;

  explicit AddBias(const A* bias) : bias(bias) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t /*lane*/, const Vec<T>& value) const {
    return value + Vec<T>(bias[row]);
  }
};

template <typename T>
class Forward {
  using A = acc_t<T>;

 public:
  explicit Forward(const SeparableForward& args)
      : args_(args),
        channels_(args.shape.channels),
        tokens_(args.shape.grid.tokens()),
        weights_(args.weights, channels_),
        scores_(static_cast<A*>(args.scores)),
        pooled_(static_cast<A*>(args.pooled)),
        context_(static_cast<A*>(args.context)),
        pool_runs_(args.shape, kPoolTokens),
        tiles_(args.shape, at::get_num_threads()),
        partials_(pool_runs_.count() * partial_size()) {}

  void run() {
    A* partials = partials_.take(pool_runs_.count() * partial_size());
    const int64_t pool_flops = 4 * kPoolTokens * channels_;
    at::parallel_for(0, pool_runs_.count(), grain_size(pool_flops), [&](int64_t begin, int64_t end) {
      Workspace<A> workspace(kPoolTokens * channels_);
      A* rows = workspace.take(kPoolTokens * channels_);
      for (int64_t i = begin; i < end; ++i) pool(pool_runs_[i], rows, partials + i * partial_size());
    });
    const int64_t combine_flops = 2 * pool_runs_.per_group() * channels_ + 10 * tokens_;
    at::parallel_for(0, args_.shape.groups(), grain_size(combine_flops), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) combine(group, partials);
    });
    const int64_t context_flops = 2 * channels_ * args_.shape.groups();
    at::parallel_for(
        0, channels_, grain_size(context_flops), [&](int64_t begin, int64_t end) { project_context(begin, end); });
    const int64_t tile_flops = 4 * channels_ * channels_ * tiles_.lanes();
    at::parallel_for(0, tiles_.count(), grain_size(tile_flops), [&](int64_t begin, int64_t end) {
      const int64_t size = channels_ * tiles_.lanes();
      Workspace<A> workspace(3 * Workspace<A>::padded(size));
      A *rows = workspace.take(size), *lanes = workspace.take(size), *gated = workspace.take(size);
      for (int64_t tile = begin; tile < end; ++tile) project(tile, rows, lanes, gated);
    });
  }

 private:
  // A partial pool: maximum query, sum of exponentials, weighted sum of tokens.
  int64_t partial_size() const { return 2 + channels_; }

  // Queries of a tile of tokens (left in scores), and their softmax-weighted sum of tokens relative to the tile.
  void pool(const TokenRun& run, A* rows, A* partial) {
    load_tokens<T>(run.slice(args_.shape, args_.x), run.first, run.count, rows, channels_);
    A* scores = scores_ + run.group * tokens_ + run.first;
    A maximum = -std::numeric_limits<A>::infinity();
    for (int64_t n = 0; n < run.count; ++n) {
      scores[n] = dot(rows + n * channels_, weights_.query, channels_) + weights_.bias[0];
      maximum = scores[n] > maximum ? scores[n] : maximum;
    }
    alignas(64) A exponentials[kPoolTokens];
    exponentiate(scores, run.count, maximum, exponentials);
    A sum = 0;
    for (int64_t n = 0; n < run.count; ++n) sum += exponentials[n];
    partial[0] = maximum;
    partial[1] = sum;
    gemm(
        1, channels_, run.count, StridedMatrix<A>{exponentials, run.count, 1}, rows, channels_, partial + 2, channels_,
        Overwrite());
  }

  // exponentials = e**(queries - maximum); without a query above -inf, e**-inf = 0 rather than NaN.
  static void exponentiate(const A* queries, int64_t count, A maximum, A* exponentials) {
    const Vec<A> origin(maximum == -std::numeric_limits<A>::infinity() ? A(0) : maximum);
    for (int64_t n = 0; n < count; n += Vec<A>::size()) {
      const int64_t lanes = std::min<int64_t>(Vec<A>::size(), count - n);
      const Vec<A> shifted = Vec<A>::loadu(queries + n, lanes) - origin;
      exp_nonpositive<A>(shifted).store(exponentials + n, static_cast<int>(lanes));
    }
  }

  // Joins the partial pools of a group: pooled token, and scores in place of the queries.
  void combine(int64_t group, const A* partials) {
    const int64_t count = pool_runs_.per_group();
    const A* first = partials + group * count * partial_size();
    A maximum = first[0];
    for (int64_t i = 1; i < count; ++i) maximum = std::max(maximum, first[i * partial_size()]);
    const A origin = maximum == -std::numeric_limits<A>::infinity() ? A(0) : maximum;
    A sum = 0;
    A* pooled = pooled_ + group * channels_;
    std::fill_n(pooled, channels_, A(0));
    for (int64_t i = 0; i < count; ++i) {
      const A* partial = first + i * partial_size();
      const A weight = exp_nonpositive<A>(partial[0] - origin);
      sum += weight * partial[1];
      for (int64_t c = 0; c < channels_; ++c) pooled[c] += weight * partial[2 + c];
    }
    const A inverse = A(1) / sum;
    for (int64_t c = 0; c < channels_; ++c) pooled[c] *= inverse;
    A* scores = scores_ + group * tokens_;
    exponentiate(scores, tokens_, maximum, scores);
    for (int64_t n = 0; n < tokens_; ++n) scores[n] *= inverse;
  }

  // context[:, c] = key_weight[c] . pooled + key_bias[c] for channels [begin, end).
  void project_context(int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t group = 0; group < args_.shape.groups(); ++group) {
        context_[group * channels_ + c] =
            dot(weights_.key + c * channels_, pooled_ + group * channels_, channels_) + weights_.key_bias()[c];
      }
    }
  }

  void project(int64_t tile, A* rows, A* lanes, A* gated) {
    const int64_t stride = tiles_.lanes();
    const int64_t columns = load_tile<T>(args_.shape, args_.x, tiles_, tile, rows, lanes);
    const StridedMatrix<A> value{weights_.value, channels_, 1}, out{weights_.out, channels_, 1};
    const GatedValue<A> gate(weights_.value_bias(), context_, tiles_, tile, channels_);
    gemm(channels_, columns, channels_, value, lanes, stride, gated, stride, gate);
    gemm(channels_, columns, channels_, out, gated, stride, lanes, stride, AddBias<A>(weights_.out_bias));
    store_tile<T>(args_.shape, args_.out, tiles_, tile, lanes, rows);
  }

  const SeparableForward& args_;
  int64_t channels_, tokens_;
  LayerWeights<A> weights_;
  A *scores_, *pooled_, *context_;
  TokenRuns pool_runs_;
  Tiles<A> tiles_;
  Workspace<A> partials_;
};

}  // namespace

void separable_attn_forward(const SeparableForward& args) {
  with_dtype(args.shape.dtype, [&](auto element) { Forward<decltype(element)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

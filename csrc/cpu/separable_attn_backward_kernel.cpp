// Separable self-attention, backward. With u = out_weight^T grad_out and v the value projection (recomputed):
//   grad_context = sum_n u relu(v)        grad_v = (u * context) [v > 0]      grad_pooled = key_weight^T grad_context
//   g_n = grad_pooled . x_n               grad_query_n = score_n (g_n - sum_m score_m g_m)
//   grad_x = value_weight^T grad_v + score_n grad_pooled + grad_query_n query_weight
// The first pass over the tokens does what needs no sum over the group, the second adds the pooled path.
// No tensor of token size is kept: weight gradients are summed tile by tile in one pair of matrices per thread.
#include "cpu/separable_attn_kernel.h"

#include "cpu/gemm.h"
#include "cpu/separable_attn_tile.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// Sums of one thread over its tiles. The matrices are uninitialised until the first tile.
template <typename A>
struct WeightGradients {
  A *value, *out;                            // [C, C]
  std::vector<double> value_bias, out_bias;  // [C]; float64 because they are long sums
  bool used = false;

  WeightGradients(A* value, A* out, int64_t channels)
      : value(value), out(out), value_bias(channels), out_bias(channels) {}
};

template <typename T>
class Backward {
  using A = acc_t<T>;

 public:
  explicit Backward(const SeparableBackward& args)
      : args_(args),
        channels_(args.shape.channels),
        tokens_(args.shape.grid.tokens()),
        groups_(args.shape.groups()),
        weights_(args.weights, channels_),
        scores_(static_cast<const A*>(args.scores)),
        pooled_(static_cast<const A*>(args.pooled)),
        context_(static_cast<const A*>(args.context)),
        tiles_(args.shape, at::get_num_threads()),
        pool_runs_(args.shape, kPoolTokens),
        shared_(shared_size()),
        grad_context_runs_(shared_.take(tiles_.runs().count() * channels_)),
        grad_context_(shared_.take(groups_ * channels_)),
        grad_pooled_(shared_.take(groups_ * channels_)),
        grad_query_weight_runs_(shared_.take(pool_runs_.count() * channels_)),
        grad_scores_(shared_.take(groups_ * tokens_)) {}

  void run() {
    first_pass();
    const int64_t sum_flops = tiles_.runs().per_group() * channels_;
    at::parallel_for(0, groups_, grain_size(sum_flops), [&](int64_t begin, int64_t end) {
      const int64_t runs = tiles_.runs().per_group();
      for (int64_t group = begin; group < end; ++group) {
        sum_rows(grad_context_runs_ + group * runs * channels_, runs, grad_context_ + group * channels_);
      }
    });
    // grad_pooled = grad_context key_weight, in panels of columns.
    const int64_t panels = (channels_ + kPanel<A> - 1) / kPanel<A>;
    const int64_t panel_flops = 2 * groups_ * channels_ * kPanel<A>;
    at::parallel_for(0, panels, grain_size(panel_flops), [&](int64_t begin, int64_t end) {
      const int64_t column = begin * kPanel<A>, columns = std::min(end * kPanel<A>, channels_) - column;
      gemm(
          groups_, columns, channels_, StridedMatrix<A>{grad_context_, channels_, 1}, weights_.key + column, channels_,
          grad_pooled_ + column, channels_, Overwrite());
    });
    for_each_pool_run(2, [&](int64_t i, A* x, A*) { score_gradients(pool_runs_[i], x); });
    at::parallel_for(0, groups_, grain_size(5 * tokens_), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) query_gradients(group);
    });
    for_each_pool_run(6, [&](int64_t i, A* x, A* grad) {
      second_pass(pool_runs_[i], x, grad, grad_query_weight_runs_ + i * channels_);
    });
    if (args_.want_grad_weights) finish_weights();
  }

 private:
  int64_t shared_size() const {
    const auto padded = Workspace<A>::padded;
    return padded(tiles_.runs().count() * channels_) + 2 * padded(groups_ * channels_) +
        padded(pool_runs_.count() * channels_) + padded(groups_ * tokens_);
  }

  // Calls function(run index, two buffers [kPoolTokens, C]) for all pool runs, in parallel.
  template <typename Function>
  void for_each_pool_run(int64_t flops_per_value, const Function& function) {
    const int64_t size = kPoolTokens * channels_;
    at::parallel_for(0, pool_runs_.count(), grain_size(flops_per_value * size), [&](int64_t begin, int64_t end) {
      Workspace<A> workspace(2 * Workspace<A>::padded(size));
      A *first = workspace.take(size), *second = workspace.take(size);
      for (int64_t i = begin; i < end; ++i) function(i, first, second);
    });
  }

  // Buffers of one thread for one tile.
  struct Scratch {
    Workspace<A> workspace;
    A *x, *grad_out;              // [lanes, C]
    A *x_lanes, *grad_out_lanes;  // [C, lanes]
    A *value, *grad_gated;        // [C, lanes]: v, then relu(v) * context; u, then grad_v
    A* rows;                      // [lanes, C]

    explicit Scratch(int64_t size)
        : workspace(7 * Workspace<A>::padded(size)),
          x(workspace.take(size)),
          grad_out(workspace.take(size)),
          x_lanes(workspace.take(size)),
          grad_out_lanes(workspace.take(size)),
          value(workspace.take(size)),
          grad_gated(workspace.take(size)),
          rows(workspace.take(size)) {}
  };

  void first_pass() {
    if (args_.want_grad_weights) allocate_gradients(at::get_num_threads());
    const int64_t tile_flops = 10 * channels_ * channels_ * tiles_.lanes();
    at::parallel_for(0, tiles_.count(), grain_size(tile_flops), [&](int64_t begin, int64_t end) {
      Scratch scratch(channels_ * tiles_.lanes());
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t columns = tile_gradients(tile, scratch);
        if (args_.want_grad_weights) add_weight_gradients(columns, scratch, gradients_[at::get_thread_num()]);
      }
    });
  }

  // The first thread sums in the result itself.
  void allocate_gradients(int threads) {
    gradients_.emplace_back(grad_value_weight(), static_cast<A*>(args_.grad_out_weight), channels_);
    const int64_t size = channels_ * channels_;
    for (int i = 1; i < threads; ++i) {
      Workspace<A>& memory = gradient_memory_.emplace_back(2 * Workspace<A>::padded(size));
      A* value = memory.take(size);
      gradients_.emplace_back(value, memory.take(size), channels_);
    }
  }

  A* grad_value_weight() const { return static_cast<A*>(args_.grad_qkv_weight) + (1 + channels_) * channels_; }

  // Returns the lanes in use.
  int64_t tile_gradients(int64_t tile, Scratch& s) {
    const int64_t stride = tiles_.lanes();
    load_tile<T>(args_.shape, args_.x, tiles_, tile, s.x, s.x_lanes);
    const int64_t columns = load_tile<T>(args_.shape, args_.grad_out, tiles_, tile, s.grad_out, s.grad_out_lanes);
    const StridedMatrix<A> value{weights_.value, channels_, 1}, out_transposed{weights_.out, 1, channels_};
    gemm(channels_, columns, channels_, value, s.x_lanes, stride, s.value, stride, Overwrite());
    gemm(channels_, columns, channels_, out_transposed, s.grad_out_lanes, stride, s.grad_gated, stride, Overwrite());
    tiles_.for_each_run(tile, [&](const TokenRun& run, int64_t index, int64_t lane) {
      gate_backward(run, s.value + lane, s.grad_gated + lane, grad_context_runs_ + index * channels_);
    });
    if (!args_.want_grad_x) return columns;
    const StridedMatrix<A> value_transposed{weights_.value, 1, channels_};
    gemm(channels_, columns, channels_, value_transposed, s.grad_gated, stride, s.x_lanes, stride, Overwrite());
    store_tile<T>(args_.shape, args_.grad_x, tiles_, tile, s.x_lanes, s.rows);
    return columns;
  }

  // One vector of lanes of u and v: to grad_v and relu(v) * context, zero past the end of the run; and the run's share
  // of grad_context.
  void gate_backward(const TokenRun& run, A* value_lanes, A* grad_lanes, A* grad_context) {
    const A* context = context_ + run.group * channels_;
    const Vec<A> zero(0);
    for (int64_t c = 0; c < channels_; ++c) {
      A* value_row = value_lanes + c * tiles_.lanes();
      A* grad_row = grad_lanes + c * tiles_.lanes();
      const Vec<A> value = Vec<A>::loadu(value_row) + Vec<A>(weights_.value_bias()[c]);
      const Vec<A> grad = Vec<A>::loadu(grad_row);
      const Vec<A> rectified = at::vec::maximum(value, zero);
      const Vec<A> grad_value = Vec<A>::blendv(grad * Vec<A>(context[c]), zero, value <= zero);
      Vec<A>::set(zero, rectified * Vec<A>(context[c]), run.count).store(value_row);
      Vec<A>::set(zero, grad_value, run.count).store(grad_row);
      grad_context[c] = horizontal_sum(Vec<A>::set(zero, grad * rectified, run.count));
    }
  }

  void add_weight_gradients(int64_t columns, const Scratch& s, WeightGradients<A>& sums) {
    if (sums.used) {
      add_products(columns, s, sums, Accumulate());
    } else {
      add_products(columns, s, sums, Overwrite());
    }
    sums.used = true;
    for (int64_t c = 0; c < channels_; ++c) {
      sums.value_bias[c] += sum_lanes(s.grad_gated + c * tiles_.lanes(), columns);
      sums.out_bias[c] += sum_lanes(s.grad_out_lanes + c * tiles_.lanes(), columns);
    }
  }

  static A sum_lanes(const A* row, int64_t columns) {
    Vec<A> sum(0);
    for (int64_t lane = 0; lane < columns; lane += Vec<A>::size()) sum = sum + Vec<A>::loadu(row + lane);
    return horizontal_sum(sum);
  }

  // grad_value_weight += grad_v x^T and grad_out_weight += grad_out (relu(v) * context)^T.
  template <typename Epilogue>
  void add_products(int64_t columns, const Scratch& s, WeightGradients<A>& sums, const Epilogue& epilogue) {
    const int64_t stride = tiles_.lanes();
    const StridedMatrix<A> grad_value{s.grad_gated, stride, 1}, grad_out{s.grad_out_lanes, stride, 1};
    gemm(channels_, channels_, columns, grad_value, s.x, channels_, sums.value, channels_, epilogue);
    transpose(s.value, stride, s.rows, channels_, channels_, columns);
    gemm(channels_, channels_, columns, grad_out, s.rows, channels_, sums.out, channels_, epilogue);
  }

  // dst = sum of `count` rows of C, in float64 because the sum may be long.
  void sum_rows(const A* rows, int64_t count, A* dst) const {
    std::vector<double> sum(channels_);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < channels_; ++c) sum[c] += rows[i * channels_ + c];
    }
    std::copy(sum.begin(), sum.end(), dst);
  }

  // g_n = grad_pooled . x_n of a run of tokens.
  void score_gradients(const TokenRun& run, A* x) {
    load_tokens<T>(run.slice(args_.shape, args_.x), run.first, run.count, x, channels_);
    A* grad_scores = grad_scores_ + run.group * tokens_ + run.first;
    for (int64_t n = 0; n < run.count; ++n) {
      grad_scores[n] = dot(grad_pooled_ + run.group * channels_, x + n * channels_, channels_);
    }
  }

  // Softmax backward of a group: grad_query in place of the g_n. The mean is taken of the very numbers it is subtracted
  // from, so that it cancels where one score is nearly 1.
  void query_gradients(int64_t group) {
    A* grad = grad_scores_ + group * tokens_;
    const A* scores = scores_ + group * tokens_;
    double mean = 0;
    for (int64_t n = 0; n < tokens_; ++n) mean += static_cast<double>(scores[n]) * grad[n];
    for (int64_t n = 0; n < tokens_; ++n) grad[n] = scores[n] * static_cast<A>(grad[n] - mean);
  }

  // Adds the path through the pooled token to grad_x, and sums the run's share of the query weight's gradient.
  void second_pass(const TokenRun& run, A* x, A* grad, A* grad_query_weight) {
    const A* grad_pooled = grad_pooled_ + run.group * channels_;
    const A* scores = scores_ + run.group * tokens_ + run.first;
    const A* grad_query = grad_scores_ + run.group * tokens_ + run.first;
    load_tokens<T>(run.slice(args_.shape, args_.x), run.first, run.count, x, channels_);
    gemm(
        1, channels_, run.count, StridedMatrix<A>{grad_query, run.count, 1}, x, channels_, grad_query_weight, channels_,
        Overwrite());
    if (!args_.want_grad_x) return;
    const TokenSlice slice = run.slice(args_.shape, args_.grad_x);
    load_tokens<T>(slice, run.first, run.count, grad, channels_);
    for (int64_t n = 0; n < run.count; ++n) {
      A* row = grad + n * channels_;
      for (int64_t c = 0; c < channels_; ++c) {
        row[c] += scores[n] * grad_pooled[c] + grad_query[n] * weights_.query[c];
      }
    }
    store_tokens<T>(slice, run.first, run.count, grad, channels_);
  }

  void finish_weights() {
    A* grad_query = static_cast<A*>(args_.grad_qkv_weight);
    A* grad_key = grad_query + channels_;
    A* grad_bias = static_cast<A*>(args_.grad_qkv_bias);
    sum_rows(grad_query_weight_runs_, pool_runs_.count(), grad_query);
    grad_bias[0] = 0;
    sum_rows(grad_context_, groups_, grad_bias + 1);
    WeightGradients<A>& total = gradients_.front();
    if (!total.used) {
      std::fill_n(total.value, channels_ * channels_, A(0));
      std::fill_n(total.out, channels_ * channels_, A(0));
    }
    at::parallel_for(0, channels_, grain_size(2 * channels_ * groups_), [&](int64_t begin, int64_t end) {
      // grad_key_weight = grad_context^T pooled
      const StridedMatrix<A> grad_context{grad_context_ + begin, 1, channels_};
      gemm(
          end - begin, channels_, groups_, grad_context, pooled_, channels_, grad_key + begin * channels_, channels_,
          Overwrite());
      for (size_t i = 1; i < gradients_.size(); ++i) {
        if (!gradients_[i].used) continue;
        const int64_t first = begin * channels_, count = (end - begin) * channels_;
        add(gradients_[i].value + first, total.value + first, count);
        add(gradients_[i].out + first, total.out + first, count);
      }
    });
    for (size_t i = 1; i < gradients_.size(); ++i) {
      add(gradients_[i].value_bias.data(), total.value_bias.data(), channels_);
      add(gradients_[i].out_bias.data(), total.out_bias.data(), channels_);
    }
    std::copy(total.value_bias.begin(), total.value_bias.end(), grad_bias + 1 + channels_);
    std::copy(total.out_bias.begin(), total.out_bias.end(), static_cast<A*>(args_.grad_out_bias));
  }

  template <typename Number>
  static void add(const Number* from, Number* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }

  const SeparableBackward& args_;
  int64_t channels_, tokens_, groups_;
  LayerWeights<A> weights_;
  const A *scores_, *pooled_, *context_;
  Tiles<A> tiles_;
  TokenRuns pool_runs_;
  Workspace<A> shared_;
  A* grad_context_runs_;            // [runs, C]
  A *grad_context_, *grad_pooled_;  // [groups, C]
  A* grad_query_weight_runs_;       // [pool runs, C]
  A* grad_scores_;                  // [groups, N]: g_n, then grad_query
  std::vector<Workspace<A>> gradient_memory_;
  std::vector<WeightGradients<A>> gradients_;  // by thread
};

}  // namespace

void separable_attn_backward(const SeparableBackward& args) {
  with_dtype(args.shape.dtype, [&](auto element) { Backward<decltype(element)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Separable self-attention, backward. With u = out_weight^T grad_out and v the value projection (recomputed):
//   grad_context = sum_n u relu(v)        grad_v = (u * context) [v > 0]      grad_pooled = key_weight^T grad_context
//   grad_query_n = score_n (grad_pooled . x_n - grad_pooled . pooled)
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

// Sums of one thread over its tiles.
template <typename A>
struct WeightGradients {
  A* value;          // [C, C]
  A* out_transposed; // [C, C]
  A *value_bias, *out_bias;
  bool used = false;

  static int64_t size(int64_t channels) { return 2 * Workspace<A>::padded(channels * channels) + 2 * Workspace<A>::padded(channels); }
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
        tiles_(args.shape, kPanel<A>),
        pool_tiles_(args.shape, kPoolTokens),
        shared_(shared_size()),
        grad_context_tiles_(shared_.take(tiles_.count() * channels_)),
        grad_context_(shared_.take(groups_ * channels_)),
        grad_pooled_(shared_.take(groups_ * channels_)),
        grad_query_weight_tiles_(shared_.take(pool_tiles_.count() * channels_)) {}

  void run() {
    first_pass();
    at::parallel_for(0, groups_, 1 + 20000 / (tiles_.per_group() * channels_), [&](int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) sum_context(group);
    });
    // grad_pooled = grad_context key_weight, in panels of columns.
    const int64_t panels = (channels_ + kPanel<A> - 1) / kPanel<A>;
    at::parallel_for(0, panels, 1 + 500000 / (groups_ * channels_ * kPanel<A>), [&](int64_t begin, int64_t end) {
      const int64_t column = begin * kPanel<A>, columns = std::min(end * kPanel<A>, channels_) - column;
      gemm(
          groups_, columns, channels_, StridedMatrix<A>{grad_context_, channels_, 1}, weights_.key + column, channels_,
          grad_pooled_ + column, channels_, Overwrite());
    });
    at::parallel_for(0, pool_tiles_.count(), pool_tiles_.grain(8), [&](int64_t begin, int64_t end) {
      Workspace<A> workspace(2 * Workspace<A>::padded(kPoolTokens * channels_));
      A* x = workspace.take(kPoolTokens * channels_);
      A* grad = workspace.take(kPoolTokens * channels_);
      for (int64_t i = begin; i < end; ++i) second_pass(pool_tiles_[i], x, grad, grad_query_weight_tiles_ + i * channels_);
    });
    if (args_.want_grad_weights) finish_weights();
  }

 private:
  int64_t shared_size() const {
    const auto padded = Workspace<A>::padded;
    return padded(tiles_.count() * channels_) + 2 * padded(groups_ * channels_) +
        padded(pool_tiles_.count() * channels_);
  }

  // Buffers of one thread for one tile.
  struct Scratch {
    Workspace<A> workspace;
    A *x, *grad_out;                  // [panel, C]
    A *x_lanes, *grad_out_lanes;      // [C, panel]
    A *value, *grad_gated;            // [C, panel]: v, then relu(v) * context; u, then grad_v

    explicit Scratch(int64_t channels)
        : workspace(6 * Workspace<A>::padded(channels * kPanel<A>)),
          x(workspace.take(channels * kPanel<A>)),
          grad_out(workspace.take(channels * kPanel<A>)),
          x_lanes(workspace.take(channels * kPanel<A>)),
          grad_out_lanes(workspace.take(channels * kPanel<A>)),
          value(workspace.take(channels * kPanel<A>)),
          grad_gated(workspace.take(channels * kPanel<A>)) {}
  };

  void first_pass() {
    const int threads = at::get_num_threads();
    if (args_.want_grad_weights) allocate_gradients(threads);
    at::parallel_for(0, tiles_.count(), tiles_.grain(10 * channels_), [&](int64_t begin, int64_t end) {
      Scratch scratch(channels_);
      for (int64_t i = begin; i < end; ++i) {
        tile_gradients(tiles_[i], scratch, grad_context_tiles_ + i * channels_);
        if (args_.want_grad_weights) add_weight_gradients(tiles_[i], scratch, gradients_[at::get_thread_num()]);
      }
    });
  }

  void allocate_gradients(int threads) {
    gradients_.resize(threads);
    for (auto& gradient : gradients_) {
      gradient_memory_.emplace_back(WeightGradients<A>::size(channels_));
      Workspace<A>& memory = gradient_memory_.back();
      gradient.value = memory.take(channels_ * channels_);
      gradient.out_transposed = memory.take(channels_ * channels_);
      gradient.value_bias = memory.take(channels_);
      gradient.out_bias = memory.take(channels_);
    }
  }

  void tile_gradients(const Tile& tile, Scratch& s, A* grad_context) {
    load_tokens<T>(tile.slice(args_.shape, args_.x), tile.first, tile.count, s.x, channels_);
    load_tokens<T>(tile.slice(args_.shape, args_.grad_out), tile.first, tile.count, s.grad_out, channels_);
    rows_to_lanes(s.x, channels_, tile.count, channels_, s.x_lanes, kPanel<A>, A(1));
    rows_to_lanes(s.grad_out, channels_, tile.count, channels_, s.grad_out_lanes, kPanel<A>, A(1));
    const int64_t columns = round_up(tile.count, Vec<A>::size());
    const StridedMatrix<A> value{weights_.value, channels_, 1}, out_transposed{weights_.out, 1, channels_};
    gemm(channels_, columns, channels_, value, s.x_lanes, kPanel<A>, s.value, kPanel<A>, Overwrite());
    gemm(
        channels_, columns, channels_, out_transposed, s.grad_out_lanes, kPanel<A>, s.grad_gated, kPanel<A>,
        Overwrite());
    gate_backward(tile, s, grad_context);
    if (!args_.want_grad_x) return;
    const StridedMatrix<A> value_transposed{weights_.value, 1, channels_};
    gemm(
        channels_, columns, channels_, value_transposed, s.grad_gated, kPanel<A>, s.x_lanes, kPanel<A>,
        Overwrite());
    A* rows = s.grad_out_lanes;  // [count, C], free by now
    transpose(s.x_lanes, kPanel<A>, rows, channels_, channels_, tile.count);
    store_tokens<T>(tile.slice(args_.shape, args_.grad_x), tile.first, tile.count, rows, channels_);
  }

  // u, v -> grad_v and relu(v) * context; grad_context of the tile.
  void gate_backward(const Tile& tile, Scratch& s, A* grad_context) {
    const A* context = context_ + tile.group * channels_;
    for (int64_t c = 0; c < channels_; ++c) {
      Vec<A> sum(0);
      for (int64_t lane = 0; lane < tile.count; lane += Vec<A>::size()) {
        A* value_row = s.value + c * kPanel<A> + lane;
        A* grad_row = s.grad_gated + c * kPanel<A> + lane;
        const Vec<A> value = Vec<A>::loadu(value_row) + Vec<A>(weights_.value_bias()[c]);
        const Vec<A> grad = Vec<A>::loadu(grad_row);
        const Vec<A> rectified = at::vec::maximum(value, Vec<A>(0));
        const int64_t lanes = std::min<int64_t>(Vec<A>::size(), tile.count - lane);
        sum = sum + Vec<A>::set(Vec<A>(0), grad * rectified, lanes);
        (rectified * Vec<A>(context[c])).store(value_row);
        Vec<A>::blendv(grad * Vec<A>(context[c]), Vec<A>(0), value <= Vec<A>(0)).store(grad_row);
      }
      grad_context[c] = horizontal_sum(sum);
    }
  }

  void add_weight_gradients(const Tile& tile, const Scratch& s, WeightGradients<A>& sums) {
    if (sums.used) {
      add_products(tile, s, sums, Accumulate());
    } else {
      add_products(tile, s, sums, Overwrite());
      std::fill_n(sums.value_bias, channels_, A(0));
      std::fill_n(sums.out_bias, channels_, A(0));
    }
    sums.used = true;
    for (int64_t c = 0; c < channels_; ++c) {
      for (int64_t n = 0; n < tile.count; ++n) sums.value_bias[c] += s.grad_gated[c * kPanel<A> + n];
    }
    for (int64_t n = 0; n < tile.count; ++n) {
      for (int64_t c = 0; c < channels_; ++c) sums.out_bias[c] += s.grad_out[n * channels_ + c];
    }
  }

  // grad_value_weight += grad_v x^T and (grad_out_weight)^T += (relu(v) * context) grad_out^T.
  template <typename Epilogue>
  void add_products(const Tile& tile, const Scratch& s, WeightGradients<A>& sums, const Epilogue& epilogue) {
    const StridedMatrix<A> grad_value{s.grad_gated, kPanel<A>, 1}, gated{s.value, kPanel<A>, 1};
    gemm(channels_, channels_, tile.count, grad_value, s.x, channels_, sums.value, channels_, epilogue);
    gemm(channels_, channels_, tile.count, gated, s.grad_out, channels_, sums.out_transposed, channels_, epilogue);
  }

  void sum_context(int64_t group) {
    A* sum = grad_context_ + group * channels_;
    std::fill_n(sum, channels_, A(0));
    for (int64_t i = 0; i < tiles_.per_group(); ++i) {
      const A* tile = grad_context_tiles_ + (group * tiles_.per_group() + i) * channels_;
      for (int64_t c = 0; c < channels_; ++c) sum[c] += tile[c];
    }
  }

  // Adds the path through the pooled token to grad_x, and sums the tile's share of the query weight's gradient.
  void second_pass(const Tile& tile, A* x, A* grad, A* grad_query_weight) {
    const A* grad_pooled = grad_pooled_ + tile.group * channels_;
    const A* scores = scores_ + tile.group * tokens_ + tile.first;
    const A mean = dot(grad_pooled, pooled_ + tile.group * channels_, channels_);
    load_tokens<T>(tile.slice(args_.shape, args_.x), tile.first, tile.count, x, channels_);
    alignas(64) A grad_query[kPoolTokens];
    for (int64_t n = 0; n < tile.count; ++n) {
      grad_query[n] = scores[n] * (dot(grad_pooled, x + n * channels_, channels_) - mean);
    }
    gemm(
        1, channels_, tile.count, StridedMatrix<A>{grad_query, tile.count, 1}, x, channels_, grad_query_weight,
        channels_, Overwrite());
    if (!args_.want_grad_x) return;
    const TokenSlice slice = tile.slice(args_.shape, args_.grad_x);
    load_tokens<T>(slice, tile.first, tile.count, grad, channels_);
    for (int64_t n = 0; n < tile.count; ++n) {
      A* row = grad + n * channels_;
      for (int64_t c = 0; c < channels_; ++c) {
        row[c] += scores[n] * grad_pooled[c] + grad_query[n] * weights_.query[c];
      }
    }
    store_tokens<T>(slice, tile.first, tile.count, grad, channels_);
  }

  // The gradients of the parameters arrive as zeros.
  void finish_weights() {
    A* grad_query = static_cast<A*>(args_.grad_qkv_weight);
    A* grad_key = grad_query + channels_;
    A* grad_value = grad_key + channels_ * channels_;
    A* grad_out = static_cast<A*>(args_.grad_out_weight);
    A* grad_bias = static_cast<A*>(args_.grad_qkv_bias);
    A* grad_out_bias = static_cast<A*>(args_.grad_out_bias);
    for (int64_t i = 0; i < pool_tiles_.count(); ++i) {
      add(grad_query_weight_tiles_ + i * channels_, grad_query, channels_);
    }
    for (int64_t group = 0; group < groups_; ++group) {
      add(grad_context_ + group * channels_, grad_bias + 1, channels_);
    }
    for (const auto& sums : gradients_) {
      if (!sums.used) continue;
      add(sums.value_bias, grad_bias + 1 + channels_, channels_);
      add(sums.out_bias, grad_out_bias, channels_);
    }
    at::parallel_for(0, channels_, 1 + 500000 / (channels_ * groups_), [&](int64_t begin, int64_t end) {
      // grad_key_weight = grad_context^T pooled
      gemm(
          end - begin, channels_, groups_, StridedMatrix<A>{grad_context_ + begin, 1, channels_}, pooled_, channels_,
          grad_key + begin * channels_, channels_, Overwrite());
      for (const auto& sums : gradients_) {
        if (!sums.used) continue;
        add(sums.value + begin * channels_, grad_value + begin * channels_, (end - begin) * channels_);
      }
      sum_out_weight(begin, end, grad_out);
    });
  }

  // Rows [begin, end) of grad_out_weight: the transposed sums of all threads.
  void sum_out_weight(int64_t begin, int64_t end, A* grad_out) {
    const WeightGradients<A>* total = nullptr;
    for (auto& sums : gradients_) {
      if (!sums.used) continue;
      if (total == nullptr) {
        total = &sums;
        continue;
      }
      for (int64_t c = 0; c < channels_; ++c) {
        add(sums.out_transposed + c * channels_ + begin, total->out_transposed + c * channels_ + begin, end - begin);
      }
    }
    transpose(total->out_transposed + begin, channels_, grad_out + begin * channels_, channels_, channels_, end - begin);
  }

  static void add(const A* from, A* to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) to[i] += from[i];
  }

  const SeparableBackward& args_;
  int64_t channels_, tokens_, groups_;
  LayerWeights<A> weights_;
  const A *scores_, *pooled_, *context_;
  Tiles tiles_, pool_tiles_;
  Workspace<A> shared_;
  A* grad_context_tiles_;            // [tiles, C]
  A *grad_context_, *grad_pooled_;   // [groups, C]
  A* grad_query_weight_tiles_;       // [pool tiles, C]
  std::vector<Workspace<A>> gradient_memory_;
  std::vector<WeightGradients<A>> gradients_;
};

}  // namespace

void separable_attn_backward(const SeparableBackward& args) {
  with_dtype(args.shape.dtype, [&](auto element) { Backward<decltype(element)>(args).run(); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

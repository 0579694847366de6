// Separable self-attention, backward. With u = out_weight^T grad_out and v the value projection (recomputed):
//   grad_context = sum_n u relu(v)        grad_v = (u * context) [v > 0]      grad_pooled = key_weight^T grad_context
//   g_n = grad_pooled . x_n               grad_query_n = score_n (g_n - sum_m score_m g_m)
//   grad_x = value_weight^T grad_v + score_n grad_pooled + grad_query_n query_weight
// Tokens are taken group after group, a chunk of them at a time: first all threads share the tokens of the chunk, then
// the rows of the weight gradients, so that no thread keeps a sum of its own. grad_x needs grad_pooled, and so all
// chunks; until then it holds grad_v.
#include "cpu/packed.h"
#include "cpu/pool.h"
#include "cpu/products.h"
#include "cpu/separable_attn_gate.h"
#include "cpu/separable_attn_kernel.h"
#include "cpu/separable_attn_tile.h"

#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// T: of the maps and weights; W: of the products' factors, the accumulation type or T = bfloat16.
template <typename T, typename W>
class Backward {
  using A = acc_t<T>;
  using Factor = factor_t<W>;
  static constexpr bool kPairs = kPerFactor<W> == 2;

 public:
  explicit Backward(const SeparableBackward& args)
      : args_(args),
        channels_(args.shape.channels),
        stride_(padded_row<W>(channels_)),
        tokens_(args.shape.grid.tokens()),
        groups_(args.shape.groups()),
        few_(std::is_same_v<T, A> && groups_ * tokens_ <= kFewPixels),
        weights_(args.weights, channels_),
        scores_(static_cast<const A*>(args.scores)),
        pooled_(static_cast<const A*>(args.pooled)),
        runs_(args.shape, kRunTokens),
        chunk_tokens_(chunk_tokens()),
        factors_(factors_size()),
        packed_value_(factors_.take(matrix_size())),
        packed_out_(factors_.take(few_ ? 0 : matrix_size())),
        packed_value_back_(factors_.take(few_ ? 0 : matrix_size())),
        x_(factors_.take(chunk_size())),
        grad_out_(factors_.take(chunk_size())),
        grad_value_(factors_.take(chunk_size())),
        x_factors_(factors_beside(x_)),
        grad_out_factors_(factors_beside(grad_out_)),
        grad_value_factors_(factors_beside(grad_value_)),
        gated_factors_(reinterpret_cast<Factor*>(factors_.take(chunk_size()))),
        shared_(shared_size()),
        run_sums_(shared_.take(runs_.count() * 4 * stride_)),
        context_(shared_.take(groups_ * stride_)),
        grad_context_(shared_.take(groups_ * stride_)),
        grad_pooled_(shared_.take(groups_ * stride_)),
        grad_query_(shared_.take(groups_ * tokens_)) {}

  void run() {
    for_each_part(24 * square(), [&](const Part& part) { pack_weights(part); });
    for (int64_t chunk = 0; chunk < runs_.count();) chunk = chunk_gradients(chunk);
    for_each_part(8 * runs_.count() * channels_, [&](const Part& part) {
      for (int64_t group = part.begin(groups_); group < part.end(groups_); ++group) sum_grad_context(group);
    });
    for_each_part(2 * groups_ * square(), [&](const Part& part) { project_grad_context(part); });
    for_each_part(4 * groups_ * tokens_ * channels_, [&](const Part& part) { score_gradients(part); });
    for_each_part(20 * groups_ * tokens_, [&](const Part& part) {
      for (int64_t group = part.begin(groups_); group < part.end(groups_); ++group) query_gradients(group);
    });
    for_each_part(2 * groups_ * tokens_ * square(), [&](const Part& part) { finish_tokens(part); });
    if (args_.want_grad_weights) finish_weights();
  }

 private:
  static constexpr int64_t kRunTokens = 32;
  static constexpr int64_t kTileTokens = 96;
  static constexpr int64_t kChunkValues = 65536;  // of one operand, for each thread: the operands stay in its cache
  static constexpr int64_t kDepth = 256;          // tokens of one product of weight gradients
  static constexpr int64_t kFewPixels = 128;      // up to so many, packing a row-major weight costs more than it saves
  // Sums over the tokens of a run: u relu(v), grad_v, grad_out, grad_query x.
  enum { kContextSum, kValueSum, kOutSum, kQuerySum, kSums };

  int64_t square() const { return channels_ * channels_; }
  int64_t matrix_size() const { return packed_size<W>(channels_, channels_); }
  int64_t panels() const { return (channels_ + kPackedColumns - 1) / kPackedColumns; }
  bool one_chunk() const { return chunk_tokens_ == groups_ * tokens_; }
  A* run_sum(int64_t run, int64_t which) const { return run_sums_ + (run * kSums + which) * stride_; }
  int64_t chunk_size() const { return padded_inputs<W>(chunk_tokens_) * stride_; }
  int64_t factors_size() const { return (few_ ? 1 : 3) * matrix_size() + (kPairs ? 7 : 4) * chunk_size(); }
  int64_t shared_size() const {
    return (runs_.count() * kSums + 3 * groups_) * stride_ + Workspace<A>::padded(groups_ * tokens_);
  }
  // For products over the tokens of a chunk: the rows themselves, or memory for their pairs of tokens.
  Factor* factors_beside(W* rows) {
    if constexpr (kPairs) {
      return reinterpret_cast<Factor*>(factors_.take(chunk_size()));
    } else {
      return rows;
    }
  }

  void pack_weights(const Part& part) {
    const int64_t first = part.begin(panels()) * kPackedColumns;
    const int64_t columns = std::min(part.end(panels()) * kPackedColumns, channels_) - first;
    const int64_t packed = first * padded_inputs<W>(channels_);
    pack_transposed(weights_.value + first * channels_, channels_, columns, channels_, packed_value_ + packed);
    if (!few_) {
      pack(weights_.out + first, channels_, columns, channels_, packed_out_ + packed);
      if (args_.want_grad_x) pack(weights_.value + first, channels_, columns, channels_, packed_value_back_ + packed);
    }
    for (int64_t group = part.begin(groups_); group < part.end(groups_); ++group) {
      convert_row(static_cast<const A*>(args_.context) + group * channels_, context_ + group * stride_, channels_);
    }
  }

  int64_t depth() const { return channels_ / kPerFactor<W>; }
  PanelMatrix<Factor> panels_of(const W* packed) const { return PanelMatrix<Factor>::packed(factors(packed), depth()); }
  // A weight as the matrix B: packed, or as it lies in memory.
  using Panels = PanelMatrix<Factor, !std::is_same_v<T, A>>;
  Panels panels_of(const T* weight, const W* packed) const {
    if constexpr (std::is_same_v<T, A>) {
      if (few_) return Panels::row_major(weight, channels_);
    }
    return Panels::packed(factors(packed), depth());
  }
  RowMajor<Factor> rows_of(const W* rows) const { return {factors(rows), stride_ / kPerFactor<W>}; }

  // Chunks as equal as runs allow.
  int64_t chunk_tokens() const {
    const int64_t tokens = groups_ * tokens_;
    const int64_t most = (kChunkValues / channels_ + kRunTokens) * at::get_num_threads();
    const int64_t chunks = (tokens + most - 1) / most;
    return std::min(round_up((tokens + chunks - 1) / chunks, kRunTokens), tokens);
  }

  // The chunk that begins with a run; returns the run after it.
  int64_t chunk_gradients(int64_t first) {
    const int64_t last = runs_.end_of(first, runs_.count(), chunk_tokens_);
    const int64_t tokens = runs_.offset(last) - runs_.offset(first);
    for_each_part(4 * tokens * square(), [&](const Part& part) {
      Workspace<A> memory(kPairs ? 2 * kTileTokens * stride_ : 0);
      A* buffer = memory.take(0);
      Products<Factor> products;
      const int64_t end = first + part.end(last - first);
      for (int64_t run = first + part.begin(last - first); run < end;) {
        const int64_t next = runs_.end_of(run, end, kTileTokens), row = runs_.offset(run) - runs_.offset(first);
        if constexpr (kPairs) {
          tile_gradients(run, next, row, buffer, buffer + kTileTokens * stride_, products);
        } else {
          tile_gradients(run, next, row, gated_factors_ + row * stride_, grad_value_ + row * stride_, products);
        }
        run = next;
      }
    });
    if (!args_.want_grad_weights) return last;
    pad_tokens(x_factors_, tokens);
    pad_tokens(gated_factors_, tokens);
    for_each_part(4 * tokens * square(), [&](const Part& part) {
      const int64_t begin = part.begin(channels_), rows = part.end(channels_) - begin;
      const bool more = first > 0;
      Products<Factor> products;
      add_products(
          grad_value_factors_ + begin, x_factors_, rows, tokens, more, grad_value_weight() + begin * channels_,
          products);
      A* grad_out_weight = static_cast<A*>(args_.grad_out_weight) + begin * channels_;
      add_products(grad_out_factors_ + begin, gated_factors_, rows, tokens, more, grad_out_weight, products);
    });
    return last;
  }

  // Zeros behind the tokens of a chunk, up to which products over tokens read.
  void pad_tokens(Factor* factors, int64_t tokens) const {
    const int64_t end = padded_inputs<W>(tokens) / kPerFactor<W>;
    const int64_t begin = std::min(end, tokens / kPerFactor<W>);
    std::fill(factors + begin * stride_, factors + end * stride_, Factor{});
  }

  A* grad_value_weight() const { return static_cast<A*>(args_.grad_qkv_weight) + (1 + channels_) * channels_; }

  // Runs [begin, end), which lie at a row of the chunk's buffers; v and u go to rows of value and grad.
  void tile_gradients(int64_t begin, int64_t end, int64_t row, A* value, A* grad, Products<Factor>& products) {
    const int64_t tokens = runs_.offset(end) - runs_.offset(begin);
    for (int64_t i = begin, at = row; i < end; at += runs_[i++].count) {
      load(args_.x, runs_[i], x_ + at * stride_, x_factors_ + at / kPerFactor<W> * stride_);
      load(args_.grad_out, runs_[i], grad_out_ + at * stride_, grad_out_factors_ + at / kPerFactor<W> * stride_);
    }
    const RowMajor<Factor> x = rows_of(x_ + row * stride_), grad_out = rows_of(grad_out_ + row * stride_);
    products(tokens, channels_, depth(), x, panels_of(packed_value_), value, stride_, Overwrite());
    products(tokens, channels_, depth(), grad_out, panels_of(weights_.out, packed_out_), grad, stride_, Overwrite());
    for (int64_t i = begin, at = row; i < end; at += runs_[i++].count) {
      gate(i, at, value + (at - row) * stride_, grad + (at - row) * stride_);
      if (args_.want_grad_x && !one_chunk()) store(args_.grad_x, runs_[i], grad_value_ + at * stride_);
    }
  }

  // Of a run at a row of the chunk's buffers.
  void gate(int64_t run, int64_t row, A* value, A* grad) {
    const GateVectors<A> vectors{
        context_ + runs_[run].group * stride_, weights_.value_bias, run_sum(run, kContextSum), run_sum(run, kValueSum),
        run_sum(run, kOutSum)};
    const int64_t count = runs_[run].count;
    const W* grad_out = grad_out_ + row * stride_;
    if constexpr (kPairs) {
      const int64_t pairs = row / 2 * stride_;
      gate_backward(
          count, channels_, stride_, vectors, grad_out, value, grad, grad_value_ + row * stride_,
          grad_value_factors_ + pairs, gated_factors_ + pairs);
      pad_rows(grad_value_ + row * stride_, count, channels_, stride_);
    } else {
      gate_backward(count, channels_, stride_, vectors, grad_out, value, grad);
    }
  }

  void load(const MapView& map, const TokenRun& run, W* rows, [[maybe_unused]] Factor* pairs) const {
    load(map, run, rows);
    if constexpr (kPairs) {
      for (int64_t i = 0; i < run.count; i += 2, rows += 2 * stride_, pairs += stride_) {
        for (int64_t c = 0; c < channels_; c += Vec<A>::size()) {
          store_pairs(rows + c, rows + stride_ + c, Vec<A>::size(), pairs + c);
        }
      }
    }
  }
  void load(const MapView& map, const TokenRun& run, W* rows) const {
    load_tokens<T>(run.slice(args_.shape, map), run.first, run.count, rows, stride_);
    pad_rows(rows, run.count, channels_, stride_);
  }
  void store(const MapView& map, const TokenRun& run, const W* rows) const {
    store_tokens<T>(run.slice(args_.shape, map), run.first, run.count, rows, stride_);
  }

  // sum (+)= left^T right over tokens; `left` has `rows` columns from here on, `right` has C.
  void add_products(
      const Factor* left, const Factor* right, int64_t rows, int64_t tokens, bool accumulate, A* sum,
      Products<Factor>& products) const {
    const int64_t length = tokens / kPerFactor<W>;
    for (int64_t first = 0; first < length; first += kDepth) {
      const int64_t depth = std::min(kDepth, length - first);
      const ColumnMajor<Factor> a{left + first * stride_, stride_};
      const auto b = PanelMatrix<Factor>::row_major(right + first * stride_, stride_);
      if (accumulate || first > 0) {
        products(rows, channels_, depth, a, b, sum, channels_, Accumulate());
      } else {
        products(rows, channels_, depth, a, b, sum, channels_, Overwrite());
      }
    }
  }

  // dst[0, C) = the sum over runs [begin, end), in float64 because it may be long.
  template <typename Number>
  void sum_runs(int64_t begin, int64_t end, int64_t which, Number* dst) const {
    std::vector<double> sum(channels_);
    for (int64_t i = begin; i < end; ++i) {
      const A* run = run_sum(i, which);
      for (int64_t c = 0; c < channels_; ++c) sum[c] += run[c];
    }
    std::copy(sum.begin(), sum.end(), dst);
  }

  void sum_grad_context(int64_t group) {
    const int64_t first = group * runs_.per_group();
    sum_runs(first, first + runs_.per_group(), kContextSum, grad_context_ + group * stride_);
  }

  // A share of the columns of grad_pooled = grad_context key_weight.
  void project_grad_context(const Part& part) {
    Workspace<A> memory(std::is_same_v<T, A> ? 0 : channels_ * kPackedColumns);
    A* packed = memory.take(0);
    for (int64_t panel = part.begin(panels()); panel < part.end(panels()); ++panel) {
      const int64_t first = panel * kPackedColumns, columns = std::min(kPackedColumns, channels_ - first);
      const T* key = weights_.key + first;
      const auto b = [&] {
        if constexpr (std::is_same_v<T, A>) {
          return PanelMatrix<A, false>::row_major(key, channels_);
        } else {
          pack(key, channels_, columns, channels_, packed);
          return PanelMatrix<A>::packed(packed, channels_);
        }
      }();
      const RowMajor<A> a{grad_context_, stride_};
      gemm(groups_, columns, channels_, a, b, grad_pooled_ + first, stride_, Overwrite());
    }
  }

  // Rows of x of a run: of the chunk where there is only one.
  const A* const* read_x(int64_t run, RunRows<T, kRunTokens>& rows) const {
    if constexpr (!kPairs) {
      if (one_chunk()) return rows.read(x_ + runs_.offset(run) * stride_, stride_, runs_[run].count);
    }
    return rows.read(args_.x, runs_[run]);
  }

  // g_n = grad_pooled . x_n, in place of grad_query.
  void score_gradients(const Part& part) {
    RunRows<T, kRunTokens> rows(args_.shape);
    for (int64_t i = part.begin(runs_.count()); i < part.end(runs_.count()); ++i) {
      const TokenRun run = runs_[i];
      const A* grad_pooled = grad_pooled_ + run.group * stride_;
      dot_rows(read_x(i, rows), run.count, grad_pooled, channels_, grad_query_ + runs_.offset(i));
    }
  }

  // Softmax backward of a group: grad_query in place of the g_n. The mean is taken of the very numbers it is subtracted
  // from, so that it cancels where one score is nearly 1.
  void query_gradients(int64_t group) {
    A* grad = grad_query_ + group * tokens_;
    const A* scores = scores_ + group * tokens_;
    double mean = 0;
    for (int64_t n = 0; n < tokens_; ++n) mean += static_cast<double>(scores[n]) * grad[n];
    for (int64_t n = 0; n < tokens_; ++n) grad[n] = scores[n] * static_cast<A>(grad[n] - mean);
  }

  // A share of grad_x, and of the sums that make the query weight's gradient.
  void finish_tokens(const Part& part) {
    const int64_t end = part.end(runs_.count());
    Workspace<W> memory(2 * kTileTokens * stride_);
    W *grad_value = memory.take(kTileTokens * stride_), *grad_x = memory.take(kTileTokens * stride_);
    RunRows<T, kRunTokens> rows(args_.shape);
    Products<Factor> products;
    for (int64_t run = part.begin(runs_.count()), last; run < end; run = last) {
      last = runs_.end_of(run, end, kTileTokens);
      if (args_.want_grad_x) finish_tile(run, last, grad_value, grad_x, products);
      for (int64_t i = run; i < last && args_.want_grad_weights; ++i) {
        const A* grad_query = grad_query_ + runs_.offset(i);
        weighted_sum(read_x(i, rows), runs_[i].count, grad_query, channels_, run_sum(i, kQuerySum));
      }
    }
  }

  void finish_tile(int64_t begin, int64_t end, W* grad_value, W* grad_x, Products<Factor>& products) {
    const int64_t first = runs_.offset(begin), tokens = runs_.offset(end) - first;
    const A* grad_pooled[kTileTokens];
    for (int64_t i = begin, row = 0; i < end; ++i) {
      if (!one_chunk()) load(args_.grad_x, runs_[i], grad_value + row * stride_);
      const A* of_group = grad_pooled_ + runs_[i].group * stride_;
      for (int64_t n = 0; n < runs_[i].count; ++n) grad_pooled[row++] = of_group;
    }
    const RowMajor<Factor> a = rows_of(one_chunk() ? grad_value_ + first * stride_ : grad_value);
    const Panels b = panels_of(weights_.value, packed_value_back_);
    const AddPooledPath<A> pooled_path(grad_pooled, scores_ + first, grad_query_ + first, weights_.query);
    products(tokens, channels_, depth(), a, b, grad_x, stride_, pooled_path);
    for (int64_t i = begin, row = 0; i < end; row += runs_[i++].count) {
      store(args_.grad_x, runs_[i], grad_x + row * stride_);
    }
  }

  void finish_weights() {
    A *grad_query = static_cast<A*>(args_.grad_qkv_weight), *grad_key = grad_query + channels_;
    A* grad_bias = static_cast<A*>(args_.grad_qkv_bias);
    sum_runs(0, runs_.count(), kQuerySum, grad_query);
    grad_bias[0] = 0;
    sum_runs(0, runs_.count(), kContextSum, grad_bias + 1);
    sum_runs(0, runs_.count(), kValueSum, grad_bias + 1 + channels_);
    sum_runs(0, runs_.count(), kOutSum, static_cast<A*>(args_.grad_out_bias));
    for_each_part(2 * groups_ * square(), [&](const Part& part) {
      // grad_key_weight = grad_context^T pooled
      const int64_t begin = part.begin(channels_), rows = part.end(channels_) - begin;
      const ColumnMajor<A> grad_context{grad_context_ + begin, stride_};
      const auto pooled = PanelMatrix<A, false>::row_major(pooled_, channels_);
      gemm(rows, channels_, groups_, grad_context, pooled, grad_key + begin * channels_, channels_, Overwrite());
    });
  }

  const SeparableBackward& args_;
  int64_t channels_, stride_, tokens_, groups_;
  bool few_;
  LayerWeights<T> weights_;
  const A *scores_, *pooled_;
  TokenRuns runs_;
  int64_t chunk_tokens_;
  Workspace<W> factors_;
  W *packed_value_, *packed_out_, *packed_value_back_;  // for v, u and grad_x
  W *x_, *grad_out_, *grad_value_;                      // [chunk_tokens_, stride_]
  Factor *x_factors_, *grad_out_factors_, *grad_value_factors_, *gated_factors_;
  Workspace<A> shared_;
  A* run_sums_;                                // [runs, kSums, stride_]
  A *context_, *grad_context_, *grad_pooled_;  // [groups, stride_]
  A* grad_query_;                              // [groups, N]
};

}  // namespace

void separable_attn_backward(const SeparableBackward& args) {
  [[maybe_unused]] const bool even = args.shape.channels % 2 == 0 && args.shape.grid.tokens() % 2 == 0;
  with_dtype(args.shape.dtype, [&](auto element) {
    using T = decltype(element);
#if defined(CPU_CAPABILITY_AVX512_BF16)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      if (even && has_fast_bfloat16()) return Backward<T, T>(args).run();
    }
#endif
    Backward<T, acc_t<T>>(args).run();
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

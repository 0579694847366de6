// Separable self-attention, forward: pool the tokens with their scores, project the pooled vector to the context, then
// run value projection, relu, context and output projection tile by tile.
//
// In the projections tokens are rows, as they lie in the map, and channels are on the vector lanes: the weights are
// packed once.
#include "cpu/separable_attn_kernel.h"

#include "cpu/packed.h"
#include "cpu/packed_dtypes.h"
#include "cpu/pool.h"
#include "cpu/separable_attn_rows.h"
#include "cpu/separable_attn_tile.h"

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

// relu(value) * context of the row's group, from the value projection without its bias.
template <typename A>
struct GatedValue : Overwrite {
  const A* bias;
  const A* const* contexts;  // by row
  int64_t first;             // channel of column 0

  GatedValue(const A* bias, const A* const* contexts, int64_t first = 0)
      : bias(bias), contexts(contexts), first(first) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t channel, const Vec<T>& value) const {
    const auto gate = Vec<T>::loadu(contexts[row] + first + channel);
    return at::vec::maximum(value + Vec<T>::loadu(bias + channel), Vec<T>(0)) * gate;
  }
};

// T: of the map and the weights; W: of the products' factors, the accumulation type or T = bfloat16.
template <typename T, typename W>
class Forward {
  using A = acc_t<T>;

 public:
  explicit Forward(const SeparableForward& args)
      : args_(args),
        channels_(args.shape.channels),
        stride_(padded_row<W>(channels_)),
        tokens_(args.shape.grid.tokens()),
        groups_(args.shape.groups()),
        pixels_(groups_ * tokens_),
        few_(pixels_ <= kFewPixels),
        weights_(args.weights, channels_),
        scores_(static_cast<A*>(args.scores)),
        pooled_(static_cast<A*>(args.pooled)),
        context_(static_cast<A*>(args.context)),
        pool_runs_(args.shape, kPoolTokens),
        x_(args_.shape, args_.x),
        out_(args_.shape, args_.out),
        shared_(pool_runs_.count() * PartialPool<A>::size(channels_) + groups_ * stride_ + 64),
        partials_(shared_.take(pool_runs_.count() * PartialPool<A>::size(channels_))),
        gates_(shared_.take(groups_ * stride_)),
        factors_(2 * Workspace<W>::padded(matrix_size())),
        packed_value_(factors_.take(matrix_size())),
        packed_out_(factors_.take(matrix_size())) {}

  void run() {
    const int64_t pixels = pixels_, square = channels_ * channels_;
    for_each_part(8 * pixels * channels_ + (few_ ? 0 : 16 * square), [&](const Part& part) { prepare(part); });
    for_each_part(4 * groups_ * (10 * tokens_ + pool_runs_.per_group() * channels_), [&](const Part& part) {
      for (int64_t group = part.begin(groups_); group < part.end(groups_); ++group) combine(group);
    });
    for_each_part(
        8 * square * groups_, [&](const Part& part) { project_context(part.begin(channels_), part.end(channels_)); });
    if (few_) return project_few();
    for_each_part(4 * square * pixels, [&](const Part& part) { project(part.begin(pixels), part.end(pixels)); });
  }

 private:
  static constexpr int64_t kTileRows = 96;
  // Up to so many pixels the weights are packed a panel at a time, just before the panel is used.
  static constexpr int64_t kFewPixels = 128;

  PartialPool<A> partial(int64_t run) const {
    return PartialPool<A>(partials_ + run * PartialPool<A>::size(channels_));
  }
  int64_t matrix_size() const { return few_ ? kFewPixels * stride_ : packed_size<W>(channels_, channels_); }
  int64_t panels() const { return (channels_ + kPackedColumns - 1) / kPackedColumns; }

  // What needs no other token: partial pools and packed weights.
  void prepare(const Part& part) {
    RunRows<T, kPoolTokens> rows(args_.shape);
    for (int64_t i = part.begin(pool_runs_.count()); i < part.end(pool_runs_.count()); ++i) {
      pool(i, rows);
    }
    if (few_) return;
    const int64_t first = part.begin(panels()) * kPackedColumns;
    const int64_t columns = std::min(part.end(panels()) * kPackedColumns, channels_) - first;
    const int64_t offset = first * channels_, packed = first * padded_inputs<W>(channels_);
    pack_transposed(weights_.value + offset, channels_, columns, channels_, packed_value_ + packed);
    pack_transposed(weights_.out + offset, channels_, columns, channels_, packed_out_ + packed);
  }

  // Queries of a run of tokens (left in scores), and their softmax-weighted sum of tokens relative to the run.
  void pool(int64_t index, RunRows<T, kPoolTokens>& buffer) {
    const TokenRun run = pool_runs_[index];
    const A* const* rows = buffer.read(args_.x, run);
    A* scores = scores_ + run.group * tokens_ + run.first;
    dot_rows(rows, run.count, weights_.query, channels_, scores);
    for (int64_t n = 0; n < run.count; ++n) scores[n] += weights_.query_bias;
    partial(index).fill(scores, rows, run.count, channels_);
  }

  // Joins the partial pools of a group: pooled token, and scores in place of the queries.
  void combine(int64_t group) {
    const int64_t count = pool_runs_.per_group();
    const auto part = [&](int64_t i) { return partial(group * count + i); };
    const PoolStatistics<A> statistics = join_pools(count, channels_, part, pooled_ + group * channels_);
    A* scores = scores_ + group * tokens_;
    exponentiate(scores, tokens_, statistics.maximum, scores);
    for (int64_t n = 0; n < tokens_; ++n) scores[n] *= statistics.inverse;
  }

  // context[:, c] = key_weight[c] . pooled + key_bias[c] for channels [begin, end).
  void project_context(int64_t begin, int64_t end) {
    Workspace<A> memory(stride_);
    A* buffer = memory.take(stride_);
    for (int64_t group = 0; group < groups_; group += kContextGroups) {
      const int64_t count = std::min(kContextGroups, groups_ - group);
      const A* pooled[kContextGroups];
      for (int64_t i = 0; i < count; ++i) pooled[i] = pooled_ + (group + i) * channels_;
      for (int64_t c = begin; c < end; ++c) {
        A context[kContextGroups];
        dot_rows(pooled, count, accumulation_row(weights_.key + c * channels_, buffer), channels_, context);
        for (int64_t i = 0; i < count; ++i) {
          context[i] += weights_.key_bias[c];
          context_[(group + i) * channels_ + c] = context[i];
          gates_[(group + i) * stride_ + c] = context[i];
        }
      }
    }
  }

  const A* accumulation_row(const T* row, A* buffer) const {
    if constexpr (std::is_same_v<T, A>) {
      return row;
    } else {
      convert_row(row, buffer, channels_);
      return buffer;
    }
  }

  PackedLinear<W> linear(const W* packed) const { return {packed, nullptr, channels_, channels_}; }

  // Output rows [begin, end), tile by tile.
  void project(int64_t begin, int64_t end) {
    const int64_t tiles = (end - begin + kTileRows - 1) / kTileRows;
    Workspace<W> memory(2 * kTileRows * stride_);
    W *rows = memory.take(kTileRows * stride_), *gated = memory.take(kTileRows * stride_);
    pad_rows(rows, kTileRows, channels_, stride_);
    pad_rows(gated, kTileRows, channels_, stride_);
    LinearRunner<W> runner;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Part part{tile, tiles};
      const int64_t first = begin + part.begin(end - begin);
      project_tile(first, begin + part.end(end - begin) - first, rows, gated, runner);
    }
  }

  void project_tile(int64_t first, int64_t count, W* rows, W* gated, LinearRunner<W>& runner) {
    const A* contexts[kTileRows];
    rows_of_groups(args_.shape.grid, first, count, gates_, stride_, contexts);
    const RowMajor<W> x = x_.read(first, count, rows, stride_);
    const GatedValue<A> gate(weights_.value_bias, contexts);
    runner(linear(packed_value_), count, x.data, x.stride, gated, stride_, gate);
    const bool in_place = out_.in_place();
    W* result = in_place ? out_.row(first) : rows;
    const int64_t result_stride = in_place ? out_.stride() : stride_;
    runner(linear(packed_out_), count, gated, stride_, result, result_stride, AddBias(weights_.out_bias));
    if (!in_place) out_.write(first, count, 0, channels_, rows, stride_);
  }

  // Packs a share of the panels of a weight one by one; calls function(panel, its columns, its first column, buffer
  // [kFewPixels, kPackedColumns]).
  template <typename Function>
  void for_each_panel(const Part& part, const T* weight, const Function& function) const {
    const int64_t inputs = padded_inputs<W>(channels_);
    Workspace<W> memory((inputs + kFewPixels) * kPackedColumns);
    W *packed = memory.take(inputs * kPackedColumns), *buffer = memory.take(kFewPixels * kPackedColumns);
    pad_panel(channels_, packed);
    for (int64_t panel = part.begin(panels()); panel < part.end(panels()); ++panel) {
      const int64_t column = panel * kPackedColumns, count = std::min(kPackedColumns, channels_ - column);
      pack_transposed_panel(weight + column * channels_, channels_, count, channels_, packed);
      function(PackedLinear<W>{packed, nullptr, channels_, count}, column, buffer);
    }
  }

  // All rows at once; threads share the columns.
  void project_few() {
    const A* contexts[kFewPixels];
    W *rows = packed_value_, *gated = packed_out_;
    rows_of_groups(args_.shape.grid, 0, pixels_, gates_, stride_, contexts);
    const RowMajor<W> x = x_.read(0, pixels_, rows, stride_);
    pad_rows(rows, pixels_, channels_, stride_);
    pad_rows(gated, pixels_, channels_, stride_);
    const int64_t flops = 2 * channels_ * channels_ * pixels_;
    for_each_part(flops, [&](const Part& part) {
      LinearRunner<W> runner;
      for_each_panel(part, weights_.value, [&](const PackedLinear<W>& panel, int64_t column, W* /*buffer*/) {
        const GatedValue<A> gate(weights_.value_bias + column, contexts, column);
        runner(panel, pixels_, x.data, x.stride, gated + column, stride_, gate);
      });
    });
    for_each_part(flops, [&](const Part& part) {
      LinearRunner<W> runner;
      for_each_panel(part, weights_.out, [&](const PackedLinear<W>& panel, int64_t column, W* buffer) {
        const bool in_place = out_.in_place();
        W* result = in_place ? out_.row(0) + column : buffer;
        const int64_t stride = in_place ? out_.stride() : kPackedColumns;
        runner(panel, pixels_, gated, stride_, result, stride, AddBias(weights_.out_bias + column));
        if (!in_place) out_.write(0, pixels_, column, panel.outputs, buffer, stride);
      });
    });
  }

  static constexpr int64_t kContextGroups = 4;

  const SeparableForward& args_;
  int64_t channels_, stride_, tokens_, groups_, pixels_;
  bool few_;
  LayerWeights<T> weights_;
  A *scores_, *pooled_, *context_;
  TokenRuns pool_runs_;
  PixelRows<T, W> x_, out_;
  Workspace<A> shared_;
  A* partials_;  // [pool runs, PartialPool<A>::size(channels_)]
  A* gates_;     // context in rows of stride_
  Workspace<W> factors_;
  W *packed_value_, *packed_out_;  // with few pixels: x and relu(v) * context, [kFewPixels, stride_]
};

}  // namespace

void separable_attn_forward(const SeparableForward& args) {
  with_factors(args.shape.dtype, args.shape.channels % 2 == 0, [&](auto element, auto factor) {
    Forward<decltype(element), decltype(factor)>(args).run();
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// All layers of a MobileViT v1 transformer on a map. Groups of tokens (sample and pixel position) never meet, so each
// runs through all layers in the cache of one core; where there are fewer groups than threads, the threads share each
// step instead.
#include "cpu/transformer_kernel.h"

#include "cpu/norm.h"
#include "cpu/packed_dtypes.h"
#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_forward.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <optional>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kCacheBytes = 1024 * 1024;  // of a core's L2, for the tokens of the groups that it runs at once

// The tokens of some consecutive groups, group after group, through all layers.
template <typename W>
class GroupTransformer {
  using Weights = TransformerWeights<TransformerLayerWeights<W>, W>;
  using Layer = TransformerLayerWeights<W>;

 public:
  // parallel: every step is shared among the threads.
  GroupTransformer(const Transformer& args, const Weights& weights, int64_t max_groups, bool parallel)
      : args_(args),
        weights_(weights),
        channels_(args.shape.channels),
        stride_(padded_inputs<W>(channels_)),
        hidden_stride_(padded_inputs<W>(args.shape.hidden)),
        tokens_(args.shape.grid.tokens()),
        tile_rows_(LinearRunner<W>::layer_rows()),
        residual_(max_groups * tokens_ * channels_),
        memory_(4 * Workspace<W>::padded(max_groups * tokens_ * stride_)),
        x_(residual_.take(max_groups * tokens_ * channels_)),
        attended_(zeroed(memory_, max_groups * tokens_ * stride_)),
        qkv_(memory_.take(3 * max_groups * tokens_ * channels_)) {
    if (!parallel) serial_.emplace(*this);
  }

  void run(int64_t first_group, int64_t groups) {
    first_group_ = first_group;
    const int64_t rows = groups * tokens_;
    for_tiles(groups, [&](Scratch&, int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        load_tokens(args_.shape.dtype, slice(group, args_.x), 0, tokens_, row(group * tokens_), channels_);
      }
    });
    for (const Layer& layer : weights_.layers) {
      for_rows(rows, [&](Scratch& scratch, int64_t begin, int64_t count) { project(layer, scratch, begin, count); });
      for_tiles(groups * args_.shape.heads, [&](Scratch& scratch, int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) scratch.attend(task);
      });
      for_rows(rows, [&](Scratch& scratch, int64_t begin, int64_t count) { finish(layer, scratch, begin, count); });
    }
    for_tiles(groups, [&](Scratch&, int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) store(group);
    });
  }

 private:
  // Rows that the products read: what pads them must be zero.
  static W* zeroed(Workspace<W>& memory, int64_t size) {
    W* rows = memory.take(size);
    std::fill_n(rows, size, W(0));
    return rows;
  }

  // What one thread needs beside the tokens.
  class Scratch {
   public:
    explicit Scratch(const GroupTransformer& owner)
        : memory_(
              Workspace<W>::padded(owner.tile_rows_ * owner.stride_) +
              Workspace<W>::padded(owner.tile_rows_ * owner.hidden_stride_)),
          normed(zeroed(memory_, owner.tile_rows_ * owner.stride_)),
          hidden(zeroed(memory_, owner.tile_rows_ * owner.hidden_stride_)),
          attention_args_(owner.attention_args()),
          attention_(attention_args_) {}

    // One head of one group.
    void attend(int64_t index) {
      const Task task(attention_args_.shape, index);
      attention_.run(task, task);
    }

   private:
    Workspace<W> memory_;

   public:
    W* normed;  // [tile_rows_, C]
    W* hidden;  // [tile_rows_, hidden]
    LinearRunner<W> linear;

   private:
    AttnForward attention_args_;
    AttentionForward<W> attention_;
  };

  float* row(int64_t index) const { return x_ + index * channels_; }

  TokenSlice slice(int64_t group, const MapView& map) const {
    const TokenGrid& grid = args_.shape.grid;
    const int64_t index = first_group_ + group;
    return {grid, map, index / grid.positions(), index % grid.positions(), 0, channels_};
  }

  // The groups as samples of a map of one column: the rows of qkv_ and attended_ are its tokens.
  AttnForward attention_args() const {
    const TransformerShape& shape = args_.shape;
    const int64_t head_dim = channels_ / shape.heads;
    const TokenGrid column{1, tokens_, 1, 1, 1};
    const AttnShape attn{
        column, shape.heads, head_dim, 1.0 / std::sqrt(static_cast<double>(head_dim)), args_.packed_dtype};
    const int64_t width = 3 * channels_;
    return {attn, {qkv_, tokens_ * width, width, width}, {attended_, tokens_ * stride_, stride_, stride_}, nullptr};
  }

  template <typename Function>
  void for_tiles(int64_t count, const Function& function) {
    if (serial_) return function(*serial_, int64_t(0), count);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Scratch scratch(*this);
      function(scratch, begin, end);
    });
  }

  // Calls function(scratch, first row, number of rows) for tiles of rows.
  template <typename Function>
  void for_rows(int64_t rows, const Function& function) {
    const int64_t tiles = (rows + tile_rows_ - 1) / tile_rows_;
    for_tiles(tiles, [&](Scratch& scratch, int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * tile_rows_;
        function(scratch, first, std::min(tile_rows_, rows - first));
      }
    });
  }

  // qkv = linear(norm(x))
  void project(const Layer& layer, Scratch& scratch, int64_t begin, int64_t count) {
    normalize_rows(row(begin), count, channels_, args_.shape.eps, scratch.normed, stride_);
    scratch.linear(
        layer.qkv, count, scratch.normed, stride_, qkv_ + 3 * begin * channels_, 3 * channels_,
        AddBias(layer.qkv.bias));
  }

  // x += linear(attended), then x += linear(silu(linear(norm(x))))
  void finish(const Layer& layer, Scratch& scratch, int64_t begin, int64_t count) {
    float* x = row(begin);
    const W* attended = attended_ + begin * stride_;
    scratch.linear(layer.proj, count, attended, stride_, x, channels_, AddBiasToResidual(layer.proj.bias));
    normalize_rows(x, count, channels_, args_.shape.eps, scratch.normed, stride_);
    scratch.linear(
        layer.fc1, count, scratch.normed, stride_, scratch.hidden, hidden_stride_, AddBiasSilu<W>(layer.fc1.bias));
    scratch.linear(layer.fc2, count, scratch.hidden, hidden_stride_, x, channels_, AddBiasToResidual(layer.fc2.bias));
  }

  // out = norm(x), with the affine parameters of the last norm.
  void store(int64_t group) {
    float* x = row(group * tokens_);
    normalize_rows(x, tokens_, channels_, args_.shape.eps, x, channels_);
    scale_shift_rows(x, tokens_, channels_, weights_.norm_weight, weights_.norm_bias);
    store_tokens(args_.shape.dtype, slice(group, args_.out), 0, tokens_, x, channels_);
  }

  const Transformer& args_;
  const Weights& weights_;
  int64_t channels_, stride_, hidden_stride_, tokens_, tile_rows_, first_group_ = 0;
  Workspace<float> residual_;
  Workspace<W> memory_;
  float* x_;     // [groups * tokens, C]
  W* attended_;  // [groups * tokens, stride]
  W* qkv_;       // [groups * tokens, 3C]
  std::optional<Scratch> serial_;
};

// How many groups a thread runs through all layers at once: as many as its cache holds, for weights are read once for
// all of them.
int64_t groups_at_once(const TransformerShape& shape, int64_t share) {
  const int64_t bytes = 5 * shape.grid.tokens() * shape.channels * static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>(kCacheBytes / bytes, 1, share);
}

template <typename W>
void run(const Transformer& args) {
  const TransformerShape& shape = args.shape;
  const TransformerWeights<TransformerLayerWeights<W>, W> weights(
      args.packed, args.num_layers, shape.channels, shape.hidden);
  const int64_t groups = shape.grid.batch * shape.grid.positions();
  const int64_t threads = at::get_num_threads();
  const int64_t share = (groups + threads - 1) / threads;
  // Threads would wait at least a quarter of the time.
  if (4 * groups < 3 * share * threads) {
    GroupTransformer<W>(args, weights, groups, true).run(0, groups);
    return;
  }
  const int64_t at_once = groups_at_once(shape, share);
  at::parallel_for(0, groups, share, [&](int64_t begin, int64_t end) {
    GroupTransformer<W> transformer(args, weights, at_once, false);
    for (int64_t first = begin; first < end; first += at_once) {
      transformer.run(first, std::min(at_once, end - first));
    }
  });
}

}  // namespace

void transformer(const Transformer& args) {
  with_packed_dtype(args.packed_dtype, [&](auto weight) { run<decltype(weight)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

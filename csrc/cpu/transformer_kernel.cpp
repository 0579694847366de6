// All layers of a MobileViT v1 transformer on a map. Groups of tokens (sample and pixel position) never meet, so each
// runs through all layers in the cache of one core; where there are fewer groups than threads, the threads share each
// step instead.
#include "cpu/transformer_kernel.h"

#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_forward.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <optional>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kTileRows = 48;             // rows that go through a feed-forward network at once, in L1 and L2
constexpr int64_t kCacheBytes = 1024 * 1024;  // of a core's L2, for the tokens of the groups that it runs at once

// The tokens of some consecutive groups, group after group, through all layers.
template <typename T>
class GroupTransformer {
 public:
  // parallel: every step is shared among the threads.
  GroupTransformer(const Transformer& args, int64_t max_groups, bool parallel)
      : args_(args),
        channels_(args.shape.channels),
        tokens_(args.shape.grid.tokens()),
        memory_(5 * Workspace<float>::padded(max_groups * tokens_ * channels_)),
        x_(memory_.take(max_groups * tokens_ * channels_)),
        attended_(memory_.take(max_groups * tokens_ * channels_)),
        qkv_(memory_.take(3 * max_groups * tokens_ * channels_)) {
    if (!parallel) serial_.emplace(*this);
  }

  void run(int64_t first_group, int64_t groups) {
    first_group_ = first_group;
    const int64_t rows = groups * tokens_;
    for_tiles(groups, [&](Scratch&, int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group) {
        load_tokens<T>(slice(group, args_.x), 0, tokens_, row(x_, group * tokens_), channels_);
      }
    });
    for (const TransformerLayerWeights& layer : args_.layers) {
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
  // What one thread needs beside the tokens.
  class Scratch {
   public:
    explicit Scratch(const GroupTransformer& owner)
        : memory_(
              Workspace<float>::padded(kTileRows * owner.channels_) +
              Workspace<float>::padded(kTileRows * owner.args_.shape.hidden)),
          normed(memory_.take(kTileRows * owner.channels_)),
          hidden(memory_.take(kTileRows * owner.args_.shape.hidden)),
          attention_args_(owner.attention_args()),
          attention_(attention_args_) {}

    // One head of one group.
    void attend(int64_t task) { attention_.run(Task(attention_args_.shape, task)); }

   private:
    Workspace<float> memory_;

   public:
    float* normed;  // [kTileRows, C]
    float* hidden;  // [kTileRows, hidden]

   private:
    AttnForward attention_args_;
    AttentionForward<float> attention_;
  };

  float* row(float* rows, int64_t index) const { return rows + index * channels_; }

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
    const AttnShape attn{column, shape.heads, head_dim, 1.0 / std::sqrt(static_cast<double>(head_dim)), at::kFloat};
    const int64_t width = 3 * channels_;
    return {
        attn, {qkv_, tokens_ * width, width, width}, {attended_, tokens_ * channels_, channels_, channels_}, nullptr};
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
    const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
    for_tiles(tiles, [&](Scratch& scratch, int64_t begin, int64_t end) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTileRows;
        function(scratch, first, std::min(kTileRows, rows - first));
      }
    });
  }

  // qkv = linear(norm(x))
  void project(const TransformerLayerWeights& layer, Scratch& scratch, int64_t begin, int64_t count) {
    normalize_rows(row(x_, begin), count, channels_, args_.shape.eps, scratch.normed);
    linear(
        layer.qkv, count, scratch.normed, channels_, qkv_ + 3 * begin * channels_, 3 * channels_,
        AddBias(layer.qkv.bias));
  }

  // x += linear(attended), then x += linear(silu(linear(norm(x))))
  void finish(const TransformerLayerWeights& layer, Scratch& scratch, int64_t begin, int64_t count) {
    const int64_t hidden = args_.shape.hidden;
    float* x = row(x_, begin);
    linear(layer.proj, count, row(attended_, begin), channels_, x, channels_, AddBiasToResidual(layer.proj.bias));
    normalize_rows(x, count, channels_, args_.shape.eps, scratch.normed);
    linear(layer.fc1, count, scratch.normed, channels_, scratch.hidden, hidden, AddBiasSilu(layer.fc1.bias));
    linear(layer.fc2, count, scratch.hidden, hidden, x, channels_, AddBiasToResidual(layer.fc2.bias));
  }

  // out = norm(x), with the affine parameters of the last norm.
  void store(int64_t group) {
    float* x = row(x_, group * tokens_);
    normalize_rows(x, tokens_, channels_, args_.shape.eps, x);
    scale_shift_rows(x, tokens_, channels_, args_.norm.weight, args_.norm.bias);
    store_tokens<T>(slice(group, args_.out), 0, tokens_, x, channels_);
  }

  const Transformer& args_;
  int64_t channels_, tokens_, first_group_ = 0;
  Workspace<float> memory_;
  float *x_, *attended_;  // [groups * tokens, C]
  float* qkv_;            // [groups * tokens, 3C]
  std::optional<Scratch> serial_;
};

// How many groups a thread runs through all layers at once: as many as its cache holds, for weights are read once for
// all of them.
int64_t groups_at_once(const TransformerShape& shape, int64_t share) {
  const int64_t bytes = 5 * shape.grid.tokens() * shape.channels * static_cast<int64_t>(sizeof(float));
  return std::clamp<int64_t>(kCacheBytes / bytes, 1, share);
}

template <typename T>
void run(const Transformer& args) {
  const int64_t groups = args.shape.grid.batch * args.shape.grid.positions();
  const int64_t threads = at::get_num_threads();
  const int64_t share = (groups + threads - 1) / threads;
  // Threads that would wait: at least a quarter of the time.
  if (4 * groups < 3 * share * threads) {
    GroupTransformer<T>(args, groups, true).run(0, groups);
    return;
  }
  const int64_t at_once = groups_at_once(args.shape, share);
  at::parallel_for(0, groups, share, [&](int64_t begin, int64_t end) {
    GroupTransformer<T> transformer(args, at_once, false);
    for (int64_t first = begin; first < end; first += at_once) {
      transformer.run(first, std::min(at_once, end - first));
    }
  });
}

}  // namespace

void transformer(const Transformer& args) {
  with_storage_dtype(args.shape.dtype, [&](auto element) { run<decltype(element)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// How the kernels of separable_attn cut a map into tiles of tokens, and their view of the weights.
#pragma once

#include "cpu/separable_attn_kernel.h"
#include "cpu/token_io.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kPoolTokens = 64;  // tokens per partial pool: fixed, so that sums do not depend on the threads

// Consecutive tokens of one group (sample and pixel position).
struct TokenRun {
  int64_t group, first, count;

  TokenSlice slice(const SeparableShape& shape, const MapView& map) const {
    const int64_t positions = shape.grid.positions();
    return {shape.grid, map, group / positions, group % positions, 0, shape.channels};
  }
};

// All tokens of a map, group after group, in runs of at most `length`.
class TokenRuns {
 public:
  TokenRuns(const SeparableShape& shape, int64_t length)
      : tokens_(shape.grid.tokens()),
        length_(length),
        per_group_((tokens_ + length - 1) / length),
        count_(per_group_ * shape.groups()) {}

  int64_t count() const { return count_; }
  int64_t per_group() const { return per_group_; }
  TokenRun operator[](int64_t index) const {
    const int64_t first = index % per_group_ * length_;
    return {index / per_group_, first, std::min(length_, tokens_ - first)};
  }

 private:
  int64_t tokens_, length_, per_group_, count_;
};

// Items below which a second thread costs more than it saves.
inline int64_t grain_size(int64_t flops_per_item) {
  return std::max<int64_t>(1, 2000000 / std::max<int64_t>(flops_per_item, 1));
}

// A tile fills the vector lanes: one run of tokens per vector, of the same group or not.
template <typename A>
class Tiles {
 public:
  static constexpr int64_t kTokens = 64;  // lanes of a tile: the weights are read once per tile

  Tiles(const SeparableShape& shape, int threads) : runs_(shape, Vec<A>::size()) {
    const int64_t share = (runs_.count() + threads - 1) / threads;
    runs_per_tile_ = std::clamp<int64_t>(share, 1, kTokens / Vec<A>::size());
  }
  int64_t count() const { return (runs_.count() + runs_per_tile_ - 1) / runs_per_tile_; }
  int64_t lanes() const { return runs_per_tile_ * Vec<A>::size(); }
  const TokenRuns& runs() const { return runs_; }

  // Calls function(run, index of the run, its first lane) for each run of a tile; returns the lanes in use.
  template <typename Function>
  int64_t for_each_run(int64_t tile, const Function& function) const {
    const int64_t begin = tile * runs_per_tile_, end = std::min(begin + runs_per_tile_, runs_.count());
    for (int64_t i = begin; i < end; ++i) function(runs_[i], i, (i - begin) * Vec<A>::size());
    return (end - begin) * Vec<A>::size();
  }

  // The group of a lane of a tile.
  int64_t group(int64_t tile, int64_t lane) const {
    return (tile * runs_per_tile_ + lane / Vec<A>::size()) / runs_.per_group();
  }

 private:
  TokenRuns runs_;
  int64_t runs_per_tile_;
};

// Rows [lane, C] and lanes [C, lanes] of the tokens of a tile; those past the end of a run are zero. Returns the lanes
// in use.
template <typename T, typename A>
int64_t load_tile(
    const SeparableShape& shape, const MapView& map, const Tiles<A>& tiles, int64_t tile, A* rows, A* lanes) {
  const int64_t channels = shape.channels;
  return tiles.for_each_run(tile, [&](const TokenRun& run, int64_t, int64_t lane) {
    A* run_rows = rows + lane * channels;
    load_tokens<T>(run.slice(shape, map), run.first, run.count, run_rows, channels);
    std::fill_n(run_rows + run.count * channels, (Vec<A>::size() - run.count) * channels, A(0));
    transpose(run_rows, channels, lanes + lane, tiles.lanes(), Vec<A>::size(), channels);
  });
}

// Stores lanes [C, lanes] as the tokens of a tile; rows is scratch.
template <typename T, typename A>
void store_tile(
    const SeparableShape& shape, const MapView& map, const Tiles<A>& tiles, int64_t tile, const A* lanes, A* rows) {
  const int64_t channels = shape.channels;
  tiles.for_each_run(tile, [&](const TokenRun& run, int64_t, int64_t lane) {
    transpose(lanes + lane, tiles.lanes(), rows, channels, channels, run.count);
    store_tokens<T>(run.slice(shape, map), run.first, run.count, rows, channels);
  });
}

template <typename A>
struct LayerWeights {
  const A *query, *key, *value, *bias, *out, *out_bias;
  int64_t channels;

  LayerWeights(const SeparableWeights& weights, int64_t channels)
      : query(static_cast<const A*>(weights.qkv_weight)),
        key(query + channels),
        value(key + channels * channels),
        bias(static_cast<const A*>(weights.qkv_bias)),
        out(static_cast<const A*>(weights.out_weight)),
        out_bias(static_cast<const A*>(weights.out_bias)),
        channels(channels) {}
  const A* key_bias() const { return bias + 1; }
  const A* value_bias() const { return bias + 1 + channels; }
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

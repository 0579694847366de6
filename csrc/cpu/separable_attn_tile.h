// How the kernels of separable_attn cut a map into tiles of tokens, and their view of the weights.
#pragma once

#include "cpu/separable_attn_kernel.h"
#include "cpu/token_io.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kPoolTokens = 64;  // tokens per partial pool: fixed, so that sums do not depend on the threads

// Consecutive tokens of one group (sample and pixel position).
struct Tile {
  int64_t group, first, count;

  TokenSlice slice(const SeparableShape& shape, const MapView& map) const {
    const int64_t positions = shape.grid.positions();
    return {shape.grid, map, group / positions, group % positions, 0, shape.channels};
  }
};

class Tiles {
 public:
  Tiles(const SeparableShape& shape, int64_t tokens_per_tile)
      : tokens_(shape.grid.tokens()),
        tile_(tokens_per_tile),
        per_group_((tokens_ + tile_ - 1) / tile_),
        count_(per_group_ * shape.groups()),
        channels_(shape.channels) {}

  int64_t count() const { return count_; }
  int64_t per_group() const { return per_group_; }
  Tile operator[](int64_t index) const {
    const int64_t first = index % per_group_ * tile_;
    return {index / per_group_, first, std::min(tile_, tokens_ - first)};
  }
  // Tiles below which a second thread costs more than it saves, for a number of flops per token and channel.
  int64_t grain(int64_t flops) const {
    const int64_t per_tile = std::min(tile_, tokens_) * channels_ * flops;
    return std::max<int64_t>(1, 2000000 / std::max<int64_t>(per_tile, 1));
  }

 private:
  int64_t tokens_, tile_, per_group_, count_, channels_;
};

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

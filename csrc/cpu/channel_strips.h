// Loops over the channels of a map whose sums over its pixels stay in registers.
#pragma once

#include "cpu/simd.h"
#include "cpu/unfold_attn_fold_tile.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int kStripVectors = 4;

// Calls function(std::integral_constant<int, vectors>, channel, lanes of the last vector) for strips of channels.
template <typename A, typename Function>
void for_strips(int64_t channels, const Function& function) {
  constexpr int64_t kStrip = kStripVectors * kLanes<A>;
  for (int64_t c = 0; c < channels; c += kStrip) {
    const int64_t width = std::min(kStrip, channels - c), vectors = vectors_of<A>(width);
    with_count<kStripVectors>(vectors, [&](auto count) { function(count, c, width - (vectors - 1) * kLanes<A>); });
  }
}

// A vector of channels for the rows of a strip; lanes past the end are zero.
template <typename A, int kVectors>
void load_strip(Vec<A> (&strip)[kVectors], const A* values, int64_t last) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    strip[v] = Vec<A>::loadu(values + v * kLanes<A>, v == kVectors - 1 ? last : kLanes<A>);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

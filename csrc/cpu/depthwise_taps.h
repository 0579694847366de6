// Which source rows and columns an output of a 3x3 depthwise convolution, or of its gradient, reads: a gradient reads
// other taps at each residue of its position modulo the stride, and each residue is a convolution of its own.
#pragma once

#include "cpu/simd.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Along one axis: output m reads source[m * step + offset[t]] times the weight's tap[t], for t < count.
struct AxisTaps {
  int64_t outputs, source, step;  // lengths, and how far the window moves from output to output
  int count = 0;
  int tap[3] = {};
  int64_t offset[3] = {};             // ascending
  int64_t left = 0, right = outputs;  // all that the outputs [left, right) read is inside

  // Without taps that read padding alone.
  void add(int index, int64_t distance) {
    if (outputs == 0 || distance >= source || (outputs - 1) * step + distance < 0) return;
    left = std::clamp((-distance + step - 1) / step, left, outputs);
    right = std::clamp((source - 1 - distance) / step + 1, left, std::max(left, right));
    tap[count] = index;
    offset[count++] = distance;
  }
  bool adjacent() const { return count == 0 || offset[count - 1] - offset[0] == count - 1; }
  bool reads(int64_t position) const { return position >= 0 && position < source; }
};

// Of the convolution of an axis.
inline std::vector<AxisTaps> forward_taps(int64_t size, int64_t stride, int64_t dilation) {
  AxisTaps taps{(size - 1) / stride + 1, size, stride};
  for (int index = 0; index < 3; ++index) taps.add(index, (index - 1) * dilation);
  return {taps};
}

// Of its gradient: position residue + stride * m of the input, which output (position + dilation - tap * dilation) /
// stride of the convolution has read where that is whole.
inline std::vector<AxisTaps> backward_taps(int64_t size, int64_t stride, int64_t dilation) {
  std::vector<AxisTaps> result;
  for (int64_t residue = 0; residue < stride; ++residue) {
    AxisTaps taps{residue < size ? (size - 1 - residue) / stride + 1 : 0, (size - 1) / stride + 1, 1};
    for (int index = 2; index >= 0; --index) {
      const int64_t distance = residue + (1 - index) * dilation;
      if (distance % stride == 0) taps.add(index, distance / stride);
    }
    result.push_back(taps);
  }
  return result;
}

// Calls function(channel, skipped) for whole vectors of channels; the last one starts earlier where it would be
// partial, and its first `skipped` lanes have been in the one before.
template <typename A, typename Function>
C10_ALWAYS_INLINE void for_whole_vectors(int64_t channels, const Function& function) {
  for (int64_t c = 0; c < channels; c += Vec<A>::size()) {
    const int64_t start = std::min(c, channels - Vec<A>::size());
    function(start, c - start);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

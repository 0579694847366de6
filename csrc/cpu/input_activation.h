// What a convolution does to its input before it, as the ATen side hands it to kernels; vectors are in the accumulation
// type.
#pragma once

#include <cstdint>

namespace mobilevit::cpu {

// BatchNorm by these statistics, or nothing where they are null; then SiLU, or nothing.
struct InputActivation {
  const void *weight = nullptr, *bias = nullptr, *mean = nullptr, *var = nullptr;
  double eps = 0;
  bool silu = false;

  bool has_norm() const { return mean != nullptr; }
  bool any() const { return has_norm() || silu; }
};

}  // namespace mobilevit::cpu

// What ops with a BatchNorm inside share.
#pragma once

#include "cpu/batch_norm_kernel.h"
#include "cpu/maps.h"

namespace mobilevit::cpu {

inline BatchNormShape batch_norm_shape(const at::Tensor& x, double eps, bool silu) {
  return {x.size(0) * x.size(2) * x.size(3), x.size(1), eps, silu, x.scalar_type()};
}

// A parameter as the kernels read it.
inline at::Tensor norm_vector(const at::Tensor& parameter, const at::Tensor& x) {
  return parameter.to(accumulate_dtype(x)).contiguous();
}

}  // namespace mobilevit::cpu

// From a dtype to its C++ type.
#pragma once

#include "cpu/dispatch.h"

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Calls function with a value of the C++ type of dtype: the dtype that a kernel is compiled for.
template <typename Function>
void with_dtype(at::ScalarType dtype, const Function& function) {
#if defined(CPU_CAPABILITY_AVX512_BF16)
  TORCH_INTERNAL_ASSERT(dtype == at::kBFloat16);
  function(c10::BFloat16());
#else
  switch (dtype) {
    case at::kFloat: return function(float());
    case at::kDouble: return function(double());
    case at::kBFloat16: return function(c10::BFloat16());
    case at::kHalf: return function(c10::Half());
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
#endif
}

// The same for maps of ops that compute in float32, where they are read and written.
template <typename Function>
void with_storage_dtype(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
    case at::kFloat: return function(float());
    case at::kBFloat16: return function(c10::BFloat16());
    case at::kHalf: return function(c10::Half());
    default: TORCH_CHECK_TYPE(false, "x: expected float32, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

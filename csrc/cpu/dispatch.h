// From a tensor's dtype and the processor to the build of a kernel that serves them.
#pragma once

#include "cpu/capability.h"
#include "cpu/threads.h"

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

// Declares `void name(const Arguments&)` once per instruction set and `run_name`, which calls the chosen one.
#ifdef MOBILEVIT_X86
#define MOBILEVIT_DECLARE_KERNEL(name, Arguments)                 \
  namespace DEFAULT { void name(const Arguments&); }              \
  namespace AVX2 { void name(const Arguments&); }                 \
  namespace AVX512 { void name(const Arguments&); }               \
  inline void run_##name(const Arguments& arguments) {            \
    note_threads();                                               \
    switch (capability()) {                                       \
      case Capability::kAvx512: return AVX512::name(arguments);   \
      case Capability::kAvx2: return AVX2::name(arguments);       \
      case Capability::kDefault: return DEFAULT::name(arguments); \
    }                                                             \
  }
#else
#define MOBILEVIT_DECLARE_KERNEL(name, Arguments)      \
  namespace DEFAULT { void name(const Arguments&); }   \
  inline void run_##name(const Arguments& arguments) { \
    note_threads();                                    \
    DEFAULT::name(arguments);                          \
  }
#endif

namespace mobilevit::cpu {

// Calls function with a value of the C++ type of dtype.
template <typename Function>
void with_dtype(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
    case at::kFloat: return function(float());
    case at::kDouble: return function(double());
    case at::kBFloat16: return function(c10::BFloat16());
    case at::kHalf: return function(c10::Half());
    default: TORCH_CHECK_TYPE(false, "expected float32, float64, bfloat16 or float16, got ", dtype);
  }
}

// The same for the ops that compute in float32.
template <typename Function>
void with_storage_dtype(at::ScalarType dtype, const Function& function) {
  switch (dtype) {
    case at::kFloat: return function(float());
    case at::kBFloat16: return function(c10::BFloat16());
    case at::kHalf: return function(c10::Half());
    default: TORCH_CHECK_TYPE(false, "x: expected float32, bfloat16 or float16, got ", dtype);
  }
}

}  // namespace mobilevit::cpu

// From the processor, and the dtypes of the arguments, to the build of a kernel that serves them.
#pragma once

#include "cpu/capability.h"
#include "cpu/threads.h"

#include <c10/core/ScalarType.h>

// Declares `void name(const Arguments&)` once per instruction set and `run_name`, which calls the chosen one. The build
// for AVX512_BF16 serves arguments.in_bfloat16() alone: for others it would be that for AVX512 once more.
#define MOBILEVIT_DECLARE_KERNEL(name, Arguments)                               \
  namespace DEFAULT { void name(const Arguments&); }                            \
  namespace AVX2 { void name(const Arguments&); }                               \
  namespace AVX512 { void name(const Arguments&); }                             \
  namespace AVX512_BF16 { void name(const Arguments&); }                        \
  inline void run_##name(const Arguments& arguments) {                          \
    note_threads();                                                             \
    if constexpr (kBuiltCapability >= Capability::kAvx512Bf16) {                \
      if (capability() >= Capability::kAvx512Bf16 && arguments.in_bfloat16()) { \
        return AVX512_BF16::name(arguments);                                    \
      }                                                                         \
    }                                                                           \
    if constexpr (kBuiltCapability >= Capability::kAvx512) {                    \
      if (capability() >= Capability::kAvx512) return AVX512::name(arguments);  \
    }                                                                           \
    if constexpr (kBuiltCapability >= Capability::kAvx2) {                      \
      if (capability() >= Capability::kAvx2) return AVX2::name(arguments);      \
    }                                                                           \
    DEFAULT::name(arguments);                                                   \
  }

// Which linear layers the kernels run, by the dtype of their packed weights.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/linear.h"
#if defined(CPU_CAPABILITY_AVX512)
#include "cpu/linear_bfloat16.h"
#endif

namespace mobilevit::cpu::CPU_CAPABILITY {

// Calls function with a value of the type of the map and one of the type of the weights.
template <typename Function>
void with_dtypes(at::ScalarType map, at::ScalarType packed, const Function& function) {
  with_storage_dtype(map, [&](auto element) {
    if (packed == at::kFloat) return function(element, float());
#if defined(CPU_CAPABILITY_AVX512)
    function(element, c10::BFloat16());
#else
    TORCH_CHECK_VALUE(false, "packed: bfloat16 weights need a processor with AVX-512; pack them in float32");
#endif
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

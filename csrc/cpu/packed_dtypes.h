// Which linear layers the kernels run, by the dtype of their packed weights.
#pragma once

#include "cpu/dtypes.h"
#include "cpu/linear.h"
#if defined(CPU_CAPABILITY_AVX512)
#include "cpu/linear_bfloat16.h"
#endif

namespace mobilevit::cpu::CPU_CAPABILITY {

// Calls function with a value of the type of packed weights.
template <typename Function>
void with_packed_dtype([[maybe_unused]] at::ScalarType packed, const Function& function) {
#if !defined(CPU_CAPABILITY_AVX512_BF16)
  if (packed == at::kFloat) return function(float());
#endif
#if defined(CPU_CAPABILITY_AVX512)
  function(c10::BFloat16());
#else
  TORCH_CHECK_VALUE(false, "packed: bfloat16 weights need a processor with AVX-512; pack them in float32");
#endif
}

// Calls function with a value of the type of dtype and one of the type of the factors of products: sums' type, or
// bfloat16 where that is faster and the depth of all products is even.
template <typename Function>
void with_factors(at::ScalarType dtype, [[maybe_unused]] bool even_depth, const Function& function) {
  with_dtype(dtype, [&](auto element) {
    using T = decltype(element);
#if defined(CPU_CAPABILITY_AVX512)
    if constexpr (std::is_same_v<T, c10::BFloat16>) {
      if (even_depth && has_fast_bfloat16()) return function(element, element);
    }
#endif
    function(element, acc_t<T>());
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

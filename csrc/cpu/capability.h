// Which instruction set the CPU kernels use, decided once per process.
#pragma once

#include <string>

namespace mobilevit::cpu {

// kAvx512Bf16: AVX-512 with products of pairs of bfloat16. kAmx: the same with matrix units for them, in the same
// build.
enum class Capability { kDefault, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The highest one that the kernels were compiled for; kAmx is a part of the build for kAvx512Bf16.
constexpr auto kBuiltCapability = static_cast<Capability>(MOBILEVIT_BUILT_CAPABILITY);

// The best one that the build, the processor, ATEN_CPU_CAPABILITY and MOBILEVIT_CPU_CAPABILITY ("default", "avx2",
// "avx512", "avx512_bf16", "amx") all allow. Throws ValueError for another value of MOBILEVIT_CPU_CAPABILITY.
Capability capability();

std::string capability_name();

// Whether bfloat16 products run on matrix units (AMX).
bool has_matrix_unit();

// Whether bfloat16 products of pairs are faster than float32 ones: twice as fast on AMD's processors, half as fast on
// Intel's.
bool has_fast_pair_products();

// Whether bfloat16 products are faster than float32 ones, in either way.
bool has_fast_bfloat16();

}  // namespace mobilevit::cpu

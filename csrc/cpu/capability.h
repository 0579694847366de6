// Which instruction set the CPU kernels use, decided once per process.
#pragma once

#include <string>

namespace mobilevit::cpu {

enum class Capability { kDefault, kAvx2, kAvx512 };

// The best one that the processor, ATEN_CPU_CAPABILITY and MOBILEVIT_CPU_CAPABILITY ("default", "avx2", "avx512")
// all allow. Throws ValueError for another value of MOBILEVIT_CPU_CAPABILITY.
Capability capability();

std::string capability_name();

}  // namespace mobilevit::cpu

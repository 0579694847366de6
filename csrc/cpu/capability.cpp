#include "cpu/capability.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>

namespace mobilevit::cpu {
namespace {

Capability from_name(const std::string& name, const char* source) {
  if (name == "default") return Capability::kDefault;
  if (name == "avx2") return Capability::kAvx2;
  if (name == "avx512") return Capability::kAvx512;
  C10_THROW_ERROR(ValueError, std::string(source) + ": expected default, avx2 or avx512, got '" + name + "'");
}

// What torch runs its own kernels with: the processor, limited by ATEN_CPU_CAPABILITY.
Capability torch_capability() {
#ifdef MOBILEVIT_X86
  const std::string name = at::get_cpu_capability();
  if (name == "AVX512") return Capability::kAvx512;
  if (name == "AVX2") return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

Capability choose() {
  const char* asked = std::getenv("MOBILEVIT_CPU_CAPABILITY");
  if (asked == nullptr) return torch_capability();
  return std::min(torch_capability(), from_name(asked, "MOBILEVIT_CPU_CAPABILITY"));
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

std::string capability_name() {
  switch (capability()) {
    case Capability::kAvx512: return "avx512";
    case Capability::kAvx2: return "avx2";
    case Capability::kDefault: break;
  }
  return "default";
}

}  // namespace mobilevit::cpu

#include "cpu/capability.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace mobilevit::cpu {
namespace {

constexpr std::pair<const char*, Capability> kNames[] = {
    {"default", Capability::kDefault},
    {"avx2", Capability::kAvx2},
    {"avx512", Capability::kAvx512},
    {"avx512_bf16", Capability::kAvx512Bf16}};

Capability from_name(const std::string& name, const char* source) {
  for (const auto& [known, capability] : kNames) {
    if (name == known) return capability;
  }
  C10_THROW_ERROR(
      ValueError, std::string(source) + ": expected default, avx2, avx512 or avx512_bf16, got '" + name + "'");
}

// What torch runs its own kernels with: the processor, limited by ATEN_CPU_CAPABILITY.
Capability torch_capability() {
#ifdef MOBILEVIT_X86
  const std::string name = at::get_cpu_capability();
  if (name == "AVX512") return __builtin_cpu_supports("avx512bf16") ? Capability::kAvx512Bf16 : Capability::kAvx512;
  if (name == "AVX2") return Capability::kAvx2;
#endif
  return Capability::kDefault;
}

Capability choose() {
  const char* asked = std::getenv("MOBILEVIT_CPU_CAPABILITY");
  const Capability best = std::min(torch_capability(), kBuiltCapability);
  if (asked == nullptr) return best;
  return std::min(best, from_name(asked, "MOBILEVIT_CPU_CAPABILITY"));
}

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

std::string capability_name() { return kNames[static_cast<int>(capability())].first; }

bool has_matrix_unit() {
#ifdef MOBILEVIT_X86
  return capability() >= Capability::kAvx512 && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

bool has_fast_pair_products() {
#ifdef MOBILEVIT_X86
  return capability() == Capability::kAvx512Bf16 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

bool has_fast_bfloat16() { return has_matrix_unit() || has_fast_pair_products(); }

}  // namespace mobilevit::cpu

#include "cpu/capability.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#if defined(MOBILEVIT_X86) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mobilevit::cpu {
namespace {

constexpr std::pair<const char*, Capability> kNames[] = {
    {"default", Capability::kDefault},
    {"avx2", Capability::kAvx2},
    {"avx512", Capability::kAvx512},
    {"avx512_bf16", Capability::kAvx512Bf16},
    {"amx", Capability::kAmx}};

Capability from_name(const std::string& name, const char* source) {
  for (const auto& [known, capability] : kNames) {
    if (name == known) return capability;
  }
  C10_THROW_ERROR(
      ValueError, std::string(source) + ": expected default, avx2, avx512, avx512_bf16 or amx, got '" + name + "'");
}

#ifdef MOBILEVIT_X86
// Whether the processor has matrix units and the system lets this process use them. Linux asks for that once, for their
// registers would make every thread's saved state larger.
bool may_use_matrix_units() {
#ifdef __linux__
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-bf16") && syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// What torch runs its own kernels with: the processor, limited by ATEN_CPU_CAPABILITY.
Capability torch_capability() {
#ifdef MOBILEVIT_X86
  const std::string name = at::get_cpu_capability();
  if (name == "AVX512") {
    if (!__builtin_cpu_supports("avx512bf16")) return Capability::kAvx512;
    return may_use_matrix_units() ? Capability::kAmx : Capability::kAvx512Bf16;
  }
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

bool has_matrix_unit() { return capability() == Capability::kAmx; }

bool has_fast_pair_products() {
#ifdef MOBILEVIT_X86
  return capability() == Capability::kAvx512Bf16 && __builtin_cpu_is("amd");
#else
  return false;
#endif
}

bool has_fast_bfloat16() { return has_matrix_unit() || has_fast_pair_products(); }

}  // namespace mobilevit::cpu

// How many iterations of a parallel loop make a thread's share worth its while.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Below, a second thread costs more than it saves.
constexpr int64_t kFlopsPerThread = 1000000, kValuesPerThread = 32768;

// flops, values: of one iteration; values are read or written without much arithmetic.
inline int64_t grain_of_flops(int64_t flops) { return at::divup(kFlopsPerThread, std::max<int64_t>(flops, 1)); }
inline int64_t grain_of_values(int64_t values) { return at::divup(kValuesPerThread, std::max<int64_t>(values, 1)); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY

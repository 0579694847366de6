// Whether kernels have run on several threads in this process. Those threads do not survive a fork: OpenMP in the child
// waits for them forever.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>

namespace mobilevit::cpu {

inline std::atomic<bool>& threads_used_flag() {
  static std::atomic<bool> used{false};
  return used;
}

inline bool threads_used() { return threads_used_flag().load(std::memory_order_relaxed); }

// Called by every kernel on its way in.
inline void note_threads() {
  if (at::get_num_threads() > 1) threads_used_flag().store(true, std::memory_order_relaxed);
}

}  // namespace mobilevit::cpu

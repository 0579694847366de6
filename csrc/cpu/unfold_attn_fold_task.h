// How forward and backward of unfold_attn_fold divide the work.
#pragma once

#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_kernel.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kKeyBlock = 256;      // keys whose scores for one panel of queries stay in L1
constexpr double kFlopsPerChunk = 2e6;  // work below which a second thread costs more than it saves

// One (sample, pixel position, head).
struct Task {
  int64_t b, p, head;

  Task(const AttnShape& shape, int64_t index)
      : b(index / (shape.grid.positions() * shape.heads)),
        p(index / shape.heads % shape.grid.positions()),
        head(index % shape.heads) {}
  int64_t stats_offset(const AttnShape& shape) const {
    return ((b * shape.grid.positions() + p) * shape.heads + head) * shape.grid.tokens();
  }
  // part: 0 query, 1 key, 2 value.
  TokenSlice qkv(const AttnShape& shape, const MapView& map, int64_t part) const {
    return {shape.grid, map, b, p, (part * shape.heads + head) * shape.head_dim, shape.head_dim};
  }
  TokenSlice out(const AttnShape& shape, const MapView& map) const {
    return {shape.grid, map, b, p, head * shape.head_dim, shape.head_dim};
  }
};

inline int64_t task_count(const AttnShape& shape) { return shape.grid.batch * shape.grid.positions() * shape.heads; }

inline int64_t grain_size(const AttnShape& shape, int64_t products) {
  const double tokens = static_cast<double>(shape.grid.tokens());
  const double flops = 2.0 * products * tokens * tokens * shape.head_dim;
  return std::max<int64_t>(1, static_cast<int64_t>(kFlopsPerChunk / flops));
}

// Runs Kernel<T>(args).run(task) for all tasks, one kernel object per thread; products: how many matrix products of
// [N, N, head_dim] a task costs.
template <template <typename> class Kernel, typename Arguments>
void for_each_task(const Arguments& args, int64_t products) {
  with_dtype(args.shape.dtype, [&](auto element) {
    at::parallel_for(0, task_count(args.shape), grain_size(args.shape, products), [&](int64_t begin, int64_t end) {
      Kernel<decltype(element)> kernel(args);
      for (int64_t index = begin; index < end; ++index) kernel.run(Task(args.shape, index));
    });
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

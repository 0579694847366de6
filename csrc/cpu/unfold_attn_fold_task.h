// How forward and backward of unfold_attn_fold divide the work.
#pragma once

#include "cpu/dtypes.h"
#include "cpu/simd.h"
#include "cpu/token_rows.h"
#include "cpu/unfold_attn_fold_kernel.h"
#include "cpu/unfold_attn_fold_tile.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr double kFlopsPerChunk = 2e6;  // work below which a second thread costs more than it saves

// One (sample, pixel position, head); the position p is at (row, column) of its patch.
class Task {
 public:
  Task(const AttnShape& shape, int64_t index)
      : shape_(&shape),
        index_(index),
        b_(index / (shape.grid.positions() * shape.heads)),
        row_(index / shape.heads % shape.grid.positions() / shape.grid.patch_w),
        column_(index / shape.heads % shape.grid.patch_w),
        head_(index % shape.heads) {}

  Task next() const {
    Task task = *this;
    ++task.index_;
    if (++task.head_ < shape_->heads) return task;
    task.head_ = 0;
    if (++task.column_ < shape_->grid.patch_w) return task;
    task.column_ = 0;
    if (++task.row_ < shape_->grid.patch_h) return task;
    task.row_ = 0;
    ++task.b_;
    return task;
  }
  // Where the statistics of its tokens begin.
  int64_t stats_offset() const { return index_ * shape_->grid.tokens(); }
  // part: 0 query, 1 key, 2 value of a map of 3C channels; 0 of a map of C channels.
  template <typename T>
  TokenRows<T> rows(const MapView& map, const int64_t* offsets, int64_t part) const {
    const int64_t pixel = b_ * map.batch_stride + row_ * map.row_stride + column_ * map.column_stride;
    const int64_t channel = (part * shape_->heads + head_) * shape_->head_dim;
    return {static_cast<T*>(map.data) + pixel + channel, offsets, shape_->head_dim};
  }

 private:
  const AttnShape* shape_;
  int64_t index_, b_, row_, column_, head_;
};

inline int64_t task_count(const AttnShape& shape) { return shape.grid.batch * shape.grid.positions() * shape.heads; }

// Scores in units of log 2 are factor * (sign * query . key). The dot products are the same numbers forward and
// backward, which makes their rounding cancel in the difference from the logsumexp.
template <typename A>
A score_factor(const AttnShape& shape) {
  return static_cast<A>(std::abs(shape.scale) * kLog2E);
}

template <typename A>
A score_sign(const AttnShape& shape) {
  return static_cast<A>(shape.scale < 0 ? -1 : 1);
}

inline int64_t grain_size(const AttnShape& shape, int64_t products) {
  const double tokens = static_cast<double>(shape.grid.tokens());
  const double flops = 2.0 * products * tokens * tokens * shape.head_dim;
  return std::max<int64_t>(1, static_cast<int64_t>(kFlopsPerChunk / flops));
}

// Runs Kernel<T>(args).run(task, next task of this thread) for all tasks, one kernel object per thread; products: how
// many matrix products of [N, N, head_dim] a task costs.
template <template <typename> class Kernel, typename Arguments>
void for_each_task(const Arguments& args, int64_t products) {
  with_dtype(args.shape.dtype, [&](auto element) {
    at::parallel_for(0, task_count(args.shape), grain_size(args.shape, products), [&](int64_t begin, int64_t end) {
      Kernel<decltype(element)> kernel(args);
      Task task(args.shape, begin);
      for (int64_t index = begin; index < end; ++index) {
        const Task next = index + 1 < end ? task.next() : task;
        kernel.run(task, next);
        task = next;
      }
    });
  });
}

// Tokens to bring into the cache ahead of their task: none of a map that fits there anyway.
inline int64_t prefetched_tokens(const AttnShape& shape) {
  constexpr int64_t kCachedBytes = 1 << 18;
  const TokenGrid& grid = shape.grid;
  const int64_t channels = 3 * shape.heads * shape.head_dim;
  const int64_t bytes = grid.batch * grid.height * grid.width * channels * c10::elementSize(shape.dtype);
  return bytes > kCachedBytes ? grid.tokens() : 0;
}

// Whether a product with the N tokens as depth is cheaper with the channels on the vector lanes, the last vector partly
// filled, than with tokens on the lanes and a transposed result. In vector operations for 16 rows of the result.
template <typename A>
bool channels_on_lanes(int64_t tokens, int64_t head_dim) {
  constexpr int64_t kTransposeCost = 12;
  const int64_t wide = kLanes<A> * vectors_of<A>(head_dim) * tokens;
  return wide <= head_dim * (tokens + kTransposeCost);
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

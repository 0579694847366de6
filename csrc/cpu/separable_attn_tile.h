// How the kernels of separable_attn share tokens between threads, and the small vectors that they all read.
#pragma once

#include "cpu/gemm.h"
#include "cpu/grain.h"
#include "cpu/separable_attn_kernel.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

// Consecutive tokens of one group (sample and pixel position).
struct TokenRun {
  int64_t group, first, count;

  TokenSlice slice(const SeparableShape& shape, const MapView& map) const {
    const int64_t positions = shape.grid.positions();
    return {shape.grid, map, group / positions, group % positions, 0, shape.channels};
  }
};

// All tokens of a map, group after group, in runs of at most `length`: fixed, so that sums over a run do not depend on
// the threads.
class TokenRuns {
 public:
  TokenRuns(const SeparableShape& shape, int64_t length)
      : tokens_(shape.grid.tokens()),
        length_(length),
        per_group_((tokens_ + length - 1) / length),
        count_(per_group_ * shape.groups()) {}

  int64_t count() const { return count_; }
  int64_t per_group() const { return per_group_; }
  TokenRun operator[](int64_t index) const {
    const int64_t first = index % per_group_ * length_;
    return {index / per_group_, first, std::min(length_, tokens_ - first)};
  }
  // Tokens of all groups before a run.
  int64_t offset(int64_t index) const { return index / per_group_ * tokens_ + index % per_group_ * length_; }
  // The run after as many as make no more than `tokens` from `begin` on, one at least.
  int64_t end_of(int64_t begin, int64_t end, int64_t tokens) const {
    int64_t last = begin + 1;
    while (last < end && offset(last + 1) - offset(begin) <= tokens) ++last;
    return last;
  }

 private:
  int64_t tokens_, length_, per_group_, count_;
};

// One of `count` equal shares of some work.
struct Part {
  int64_t index, count;

  int64_t begin(int64_t items) const { return items * index / count; }
  int64_t end(int64_t items) const { return items * (index + 1) / count; }
};

// Calls function(part) in parallel, on as many threads as the work is worth.
template <typename Function>
void for_each_part(int64_t flops, const Function& function) {
  const int64_t parts = std::clamp<int64_t>(flops / kFlopsPerThread, 1, at::get_num_threads());
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) function(Part{i, parts});
  });
}

// The layer's parameters: matrices as they are given, vectors in the accumulation type, padded to whole vectors.
template <typename T>
class LayerWeights {
  using A = acc_t<T>;

 public:
  const T *key, *value, *out;                   // [C, C]
  A *query, *key_bias, *value_bias, *out_bias;  // [C]

  LayerWeights(const SeparableWeights& weights, int64_t channels)
      : key(static_cast<const T*>(weights.qkv_weight) + channels),
        value(key + channels * channels),
        out(static_cast<const T*>(weights.out_weight)),
        memory_(4 * padded_row<A>(channels)) {
    const T* qkv_bias = static_cast<const T*>(weights.qkv_bias);
    query = take(static_cast<const T*>(weights.qkv_weight), channels);
    key_bias = take(qkv_bias == nullptr ? nullptr : qkv_bias + 1, channels);
    value_bias = take(qkv_bias == nullptr ? nullptr : qkv_bias + 1 + channels, channels);
    out_bias = take(static_cast<const T*>(weights.out_bias), channels);
    query_bias = qkv_bias == nullptr ? A(0) : static_cast<A>(qkv_bias[0]);
  }
  A query_bias;

 private:
  A* take(const T* vector, int64_t channels) {
    A* result = memory_.take(padded_row<A>(channels));
    std::fill_n(result, padded_row<A>(channels), A(0));
    if (vector != nullptr) convert_row(vector, result, channels);
    return result;
  }

  Workspace<A> memory_;
};

// Rows of C of a run of tokens: where they lie in a map of the accumulation type, else converted to a buffer.
template <typename T, int64_t kTokens>
class RunRows {
  using A = acc_t<T>;

 public:
  explicit RunRows(const SeparableShape& shape)
      : shape_(shape), memory_(buffer_size(shape)), buffer_(memory_.take(0)) {}

  const A* const* read(const MapView& map, const TokenRun& run) {
    const T* data = static_cast<const T*>(map.data);
    const int64_t positions = shape_.grid.positions();
    TokenCursor token(shape_.grid, map, run.group / positions, run.group % positions, run.first);
    for (int64_t i = 0; i < run.count; ++i, token.next()) {
      if constexpr (std::is_same_v<T, A>) {
        rows_[i] = data + token.offset();
      } else {
        A* row = buffer_ + i * padded_row<A>(shape_.channels);
        convert_row(data + token.offset(), row, shape_.channels);
        rows_[i] = row;
      }
    }
    return rows_;
  }
  // Rows of a matrix in place of a map's.
  const A* const* read(const A* matrix, int64_t stride, int64_t count) {
    for (int64_t i = 0; i < count; ++i) rows_[i] = matrix + i * stride;
    return rows_;
  }

 private:
  static int64_t buffer_size(const SeparableShape& shape) {
    return std::is_same_v<T, A> ? 0 : kTokens * padded_row<A>(shape.channels);
  }

  const SeparableShape& shape_;
  Workspace<A> memory_;
  A* buffer_;
  const A* rows_[kTokens];
};

// dots[i] = rows[i] . vector. The vector is read once for several rows.
template <typename A>
inline void dot_rows(const A* const* rows, int64_t count, const A* vector, int64_t n, A* dots) {
  constexpr int kRows = 4;
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    Vec<A> sum[kRows];
    for (auto& s : sum) s = Vec<A>(0);
    int64_t c = 0;
    for (; c + Vec<A>::size() <= n; c += Vec<A>::size()) {
      const auto factor = Vec<A>::loadu(vector + c);
      for (int r = 0; r < kRows; ++r) sum[r] = at::vec::fmadd(Vec<A>::loadu(rows[i + r] + c), factor, sum[r]);
    }
    if (c < n) {
      const auto factor = Vec<A>::loadu(vector + c, n - c);
      for (int r = 0; r < kRows; ++r) sum[r] = at::vec::fmadd(Vec<A>::loadu(rows[i + r] + c, n - c), factor, sum[r]);
    }
    for (int r = 0; r < kRows; ++r) dots[i + r] = horizontal_sum(sum[r]);
  }
  for (; i < count; ++i) dots[i] = dot(rows[i], vector, n);
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Elementwise steps of the backward of separable_attn.
#pragma once

#include "cpu/gemm.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

// The path of grad_x through the pooled token, added to the path through the value.
template <typename A>
struct AddPooledPath : Overwrite {
  const A *const *grad_pooled, *scores, *grad_query;  // by row
  const A* query_weight;

  AddPooledPath(const A* const* grad_pooled, const A* scores, const A* grad_query, const A* query_weight)
      : grad_pooled(grad_pooled), scores(scores), grad_query(grad_query), query_weight(query_weight) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t channel, const Vec<T>& value) const {
    const auto pooled_path = at::vec::fmadd(Vec<T>(scores[row]), Vec<T>::loadu(grad_pooled[row] + channel), value);
    return at::vec::fmadd(Vec<T>(grad_query[row]), Vec<T>::loadu(query_weight + channel), pooled_path);
  }
};

// Vectors of C of a run of tokens: of its group, of the layer, and sums over the run of u relu(v), grad_v and grad_out.
template <typename A>
struct GateVectors {
  const A *context, *value_bias;
  A *context_sum, *value_sum, *out_sum;
};

// Rows of v (without bias) and u: to relu(v) * context and grad_v; and the sums. Rows and vectors have room for whole
// vectors.
template <typename A>
inline void gate_backward(
    int64_t count, int64_t channels, int64_t stride, const GateVectors<A>& vectors, const A* grad_out, A* value_rows,
    A* grad_rows) {
  const Vec<A> zero(0);
  for (int64_t c = 0; c < channels; c += Vec<A>::size()) {
    const auto context = Vec<A>::loadu(vectors.context + c), bias = Vec<A>::loadu(vectors.value_bias + c);
    Vec<A> context_sum(0), value_sum(0), out_sum(0);
    for (int64_t i = 0, at = c; i < count; ++i, at += stride) {
      const auto value = Vec<A>::loadu(value_rows + at) + bias, grad = Vec<A>::loadu(grad_rows + at);
      const auto rectified = at::vec::maximum(value, zero);
      const auto grad_value = Vec<A>::blendv(grad * context, zero, value <= zero);
      (rectified * context).store(value_rows + at);
      grad_value.store(grad_rows + at);
      context_sum = at::vec::fmadd(grad, rectified, context_sum);
      value_sum = value_sum + grad_value;
      out_sum = out_sum + Vec<A>::loadu(grad_out + at);
    }
    context_sum.store(vectors.context_sum + c);
    value_sum.store(vectors.value_sum + c);
    out_sum.store(vectors.out_sum + c);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

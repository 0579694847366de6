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

// relu(v) and grad_v of a token's vector of channels.
template <typename A>
struct GatedToken {
  Vec<A> rectified, grad_value;

  GatedToken(const Vec<A>& value, const Vec<A>& grad, const Vec<A>& context) {
    const Vec<A> zero(0);
    rectified = at::vec::maximum(value, zero);
    grad_value = Vec<A>::blendv(grad * context, zero, value <= zero);
  }
};

// The sums of a vector of channels over the tokens of a run.
template <typename A>
struct GateSums {
  Vec<A> context{0}, value{0}, out{0};

  void add(const GatedToken<A>& token, const Vec<A>& grad, const Vec<A>& grad_out) {
    context = at::vec::fmadd(grad, token.rectified, context);
    value = value + token.grad_value;
    out = out + grad_out;
  }
  void store(const GateVectors<A>& vectors, int64_t c) const {
    context.store(vectors.context_sum + c);
    value.store(vectors.value_sum + c);
    out.store(vectors.out_sum + c);
  }
};

// Rows of v (without bias) and u: to relu(v) * context and grad_v, in their place; and the sums. Rows and vectors have
// room for whole vectors.
template <typename A>
inline void gate_backward(
    int64_t count, int64_t channels, int64_t stride, const GateVectors<A>& vectors, const A* grad_out, A* value_rows,
    A* grad_rows) {
  for (int64_t c = 0; c < channels; c += Vec<A>::size()) {
    const auto context = Vec<A>::loadu(vectors.context + c), bias = Vec<A>::loadu(vectors.value_bias + c);
    GateSums<A> sums;
    for (int64_t i = 0, at = c; i < count; ++i, at += stride) {
      const auto grad = Vec<A>::loadu(grad_rows + at);
      const GatedToken<A> token(Vec<A>::loadu(value_rows + at) + bias, grad, context);
      (token.rectified * context).store(value_rows + at);
      token.grad_value.store(grad_rows + at);
      sums.add(token, grad, Vec<A>::loadu(grad_out + at));
    }
    sums.store(vectors, c);
  }
}

#if defined(CPU_CAPABILITY_AVX512_BF16)
// The same in bfloat16: grad_v in rows, and both in pairs of tokens [count / 2, stride]; count is even.
inline void gate_backward(
    int64_t count, int64_t channels, int64_t stride, const GateVectors<float>& vectors, const c10::BFloat16* grad_out,
    const float* value_rows, const float* grad_rows, c10::BFloat16* grad_value, Bfloat16Pair* grad_value_pairs,
    Bfloat16Pair* gated_pairs) {
  using Vector = Vec<float>;
  for (int64_t c = 0; c < channels; c += Vector::size()) {
    const auto context = Vector::loadu(vectors.context + c), bias = Vector::loadu(vectors.value_bias + c);
    GateSums<float> sums;
    const auto token = [&](int64_t at) {
      const auto grad = Vector::loadu(grad_rows + at);
      const GatedToken<float> result(Vector::loadu(value_rows + at) + bias, grad, context);
      store_as(result.grad_value, grad_value + at);
      sums.add(result, grad, load_as<float>(grad_out + at));
      return result;
    };
    for (int64_t i = 0, at = c; i < count; i += 2, at += 2 * stride) {
      const GatedToken<float> first = token(at), second = token(at + stride);
      const int64_t pair = i / 2 * stride + c;
      store_pairs(first.grad_value, second.grad_value, grad_value_pairs + pair);
      store_pairs(first.rectified * context, second.rectified * context, gated_pairs + pair);
    }
    sums.store(vectors, c);
  }
}
#endif

}  // namespace mobilevit::cpu::CPU_CAPABILITY

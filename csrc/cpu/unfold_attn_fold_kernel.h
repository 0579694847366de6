// What the ATen side hands to the kernels of unfold_attn_fold.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/token_grid.h"

namespace mobilevit::cpu {

struct AttnShape {
  TokenGrid grid;
  int64_t heads, head_dim;
  double scale;
  at::ScalarType dtype;
};

struct AttnForward {
  AttnShape shape;
  MapView qkv, out;
  void* logsumexp;  // [B, P, heads, N], or null where it is not wanted

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

struct AttnBackward {
  AttnShape shape;
  MapView grad_out, qkv, out, grad_qkv;
  const void* logsumexp;

  bool in_bfloat16() const { return shape.dtype == at::kBFloat16; }
};

MOBILEVIT_DECLARE_KERNEL(unfold_attn_fold_forward, AttnForward)
MOBILEVIT_DECLARE_KERNEL(unfold_attn_fold_backward, AttnBackward)

}  // namespace mobilevit::cpu

// Attention among the tokens of one pixel position, forward, read and written in place on the NHWC map.
//
// Queries lie on the vector lanes: scores are kept transposed, [keys, queries], so that softmax is a reduction over
// rows and head_dim is never a vector dimension (no padding for head_dim 20, 30, 36, ...).
#pragma once

#include "cpu/gemm.h"
#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_kernel.h"
#include "cpu/unfold_attn_fold_task.h"

#include <limits>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int kChains = 4;

// Calls step(k, chain) for k < count with the chains in turn: independent reductions, which hide each other's latency
// and round less than one.
template <typename Step>
void in_chains(int64_t count, const Step& step) {
  int64_t k = 0;
  for (; k + kChains <= count; k += kChains) {
    step(k, 0);
    step(k + 1, 1);
    step(k + 2, 2);
    step(k + 3, 3);
  }
  for (; k < count; ++k) step(k, 0);
}

// Softmax of a block of scores [keys, lanes] over the keys, online: replaces the scores by 2**(score - maximum),
// updates maximum and sum, and scales what was accumulated so far (accumulated [head_dim, lanes]).
template <typename A>
void online_softmax(
    int64_t keys, int64_t lanes, A* scores, A* maximum, A* sum, bool first, int64_t head_dim, A* accumulated) {
  constexpr A kMinusInfinity = -std::numeric_limits<A>::infinity();
  for (int64_t lane = 0; lane < lanes; lane += Vec<A>::size()) {
    Vec<A> maxima[kChains] = {kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity};
    in_chains(keys, [&](int64_t k, int chain) {
      maxima[chain] = at::vec::maximum(maxima[chain], Vec<A>::loadu(scores + k * kPanel<A> + lane));
    });
    const Vec<A> block_maximum =
        at::vec::maximum(at::vec::maximum(maxima[0], maxima[1]), at::vec::maximum(maxima[2], maxima[3]));
    const Vec<A> old_maximum = first ? Vec<A>(kMinusInfinity) : Vec<A>::loadu(maximum + lane);
    const Vec<A> new_maximum = at::vec::maximum(old_maximum, block_maximum);
    // A lane without a score above -inf yet must stay at sum 0 rather than turn NaN.
    const Vec<A> origin = Vec<A>::blendv(new_maximum, Vec<A>(0), new_maximum == Vec<A>(kMinusInfinity));
    Vec<A> sums[kChains] = {A(0), A(0), A(0), A(0)};
    in_chains(keys, [&](int64_t k, int chain) {
      A* row = scores + k * kPanel<A> + lane;
      const Vec<A> probability = exp2_nonpositive<A>(Vec<A>::loadu(row) - origin);
      probability.store(row);
      sums[chain] = sums[chain] + probability;
    });
    const Vec<A> block_sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    new_maximum.store(maximum + lane);
    if (first) {
      block_sum.store(sum + lane);
      continue;
    }
    const Vec<A> decay = exp2_nonpositive<A>(old_maximum - origin);
    at::vec::fmadd(Vec<A>::loadu(sum + lane), decay, block_sum).store(sum + lane);
    for (int64_t c = 0; c < head_dim; ++c) {
      A* row = accumulated + c * kPanel<A> + lane;
      (Vec<A>::loadu(row) * decay).store(row);
    }
  }
}

template <typename T>
class AttentionForward {
  using A = acc_t<T>;

 public:
  explicit AttentionForward(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        workspace_(workspace_size()),
        keys_(workspace_.take(tokens_ * dim_)),
        values_(workspace_.take(tokens_ * dim_)),
        scores_(workspace_.take(key_block() * kPanel<A>)),
        query_(workspace_.take(dim_ * kPanel<A>)),
        result_(workspace_.take(dim_ * kPanel<A>)),
        rows_(workspace_.take(dim_ * kPanel<A>)),
        maximum_(workspace_.take(kPanel<A>)),
        sum_(workspace_.take(kPanel<A>)) {}

  void run(const Task& task) {
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 1), 0, tokens_, keys_, dim_);
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 2), 0, tokens_, values_, dim_);
    for (int64_t first = 0; first < tokens_; first += kPanel<A>) {
      attend(task, first, std::min(kPanel<A>, tokens_ - first));
    }
  }

 private:
  int64_t key_block() const { return std::min(tokens_, kKeyBlock); }

  int64_t workspace_size() const {
    const auto padded = Workspace<A>::padded;
    return 2 * padded(tokens_ * dim_) + padded(key_block() * kPanel<A>) + 3 * padded(dim_ * kPanel<A>) +
        2 * padded(kPanel<A>);
  }

  // Queries [first, first + count) against all keys.
  void attend(const Task& task, int64_t first, int64_t count) {
    const int64_t lanes = round_up(count, Vec<A>::size());
    load_tokens<T>(task.qkv(args_.shape, args_.qkv, 0), first, count, rows_, dim_);
    rows_to_lanes(rows_, dim_, count, dim_, query_, kPanel<A>, static_cast<A>(args_.shape.scale * kLog2E));
    for (int64_t key = 0; key < tokens_; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, tokens_ - key);
      const StridedMatrix<A> key_rows{keys_ + key * dim_, dim_, 1};  // [keys, head_dim]
      gemm(keys, lanes, dim_, key_rows, query_, kPanel<A>, scores_, kPanel<A>, Overwrite());
      online_softmax(keys, lanes, scores_, maximum_, sum_, key == 0, dim_, result_);
      const StridedMatrix<A> value_columns{values_ + key * dim_, 1, dim_};  // [head_dim, keys]
      if (key == 0) {
        gemm(dim_, lanes, keys, value_columns, scores_, kPanel<A>, result_, kPanel<A>, Overwrite());
      } else {
        gemm(dim_, lanes, keys, value_columns, scores_, kPanel<A>, result_, kPanel<A>, Accumulate());
      }
    }
    finish(task, first, count, lanes);
  }

  // Divides by the sums, stores the output rows and the logsumexp.
  void finish(const Task& task, int64_t first, int64_t count, int64_t lanes) {
    const bool wanted = args_.logsumexp != nullptr;
    A* logsumexp = wanted ? static_cast<A*>(args_.logsumexp) + task.stats_offset(args_.shape) + first : nullptr;
    for (int64_t lane = 0; lane < lanes; lane += Vec<A>::size()) {
      const Vec<A> sum = Vec<A>::loadu(sum_ + lane);
      const Vec<A> inverse = Vec<A>(1) / sum;
      for (int64_t c = 0; c < dim_; ++c) {
        A* row = result_ + c * kPanel<A> + lane;
        (Vec<A>::loadu(row) * inverse).store(row);
      }
      if (!wanted) continue;
      const Vec<A> log2_total = Vec<A>::loadu(maximum_ + lane) + sum.log2();
      const int stored = static_cast<int>(std::min<int64_t>(Vec<A>::size(), count - lane));
      (log2_total * Vec<A>(static_cast<A>(kLn2))).store(logsumexp + lane, stored);
    }
    transpose(result_, kPanel<A>, rows_, dim_, dim_, count);
    store_tokens<T>(task.out(args_.shape, args_.out), first, count, rows_, dim_);
  }

  const AttnForward& args_;
  int64_t tokens_, dim_;
  Workspace<A> workspace_;
  A *keys_, *values_;   // [tokens, head_dim]
  A* scores_;           // [key block, panel]
  A *query_, *result_;  // [head_dim, panel]
  A* rows_;             // [panel, head_dim]
  A *maximum_, *sum_;   // [panel], of the scores in units of log 2
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

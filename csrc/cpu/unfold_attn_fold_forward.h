// Attention among the tokens of one pixel position, forward, read and written in place on the NHWC map.
//
// Queries lie on the vector lanes: scores are kept transposed, [keys, queries], so that softmax is a reduction over
// rows and head_dim is no vector dimension (no padding for head_dim 20, 30, 36, ...), unless few tokens make padding
// cheaper than transposing the result.
#pragma once

#include "cpu/unfold_attn_fold_kernel.h"

#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_softmax.h"
#include "cpu/unfold_attn_fold_task.h"

#include <limits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kKeyBlock = 256;  // keys whose scores for one panel of queries stay in L1
constexpr int kPanelVectors = 2;    // queries of a panel, in vectors

// The products and the softmax of one panel of queries, in a thread's own memory.
template <typename A>
class ForwardPanel {
 protected:
  static constexpr int64_t kPanel = kPanelVectors * kLanes<A>;

  explicit ForwardPanel(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        direct_(tokens_ <= kKeyBlock && channels_on_lanes<A>(tokens_, dim_)),
        row_stride_(round_up(dim_, kChannelGroup)),
        value_stride_(direct_ ? round_up(dim_, kLanes<A>) : row_stride_),
        workspace_(workspace_size()),
        keys_(workspace_.take(rows_size(row_stride_))),
        values_(workspace_.take(rows_size(value_stride_))),
        scores_(workspace_.take(key_block() * kPanel)),
        rows_(workspace_.take(kPanel * row_stride_ + kLanes<A>)),
        query_(workspace_.take(row_stride_ * kPanel)),
        result_(workspace_.take(row_stride_ * kPanel)),
        softmax_{workspace_.take(kPanel), workspace_.take(kPanel), workspace_.take(kPanel)} {}

  // The loaded rows of `count` queries against all keys: leaves result_, or with direct_ scores_ and softmax_.
  template <int kVectors>
  void attend(int64_t count, A* logsumexp) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    std::fill(rows_ + count * row_stride_, rows_ + kWidth * row_stride_, A(0));
    tokens_to_lanes(rows_, row_stride_, kWidth, dim_, query_, kWidth, score_sign<A>(args_.shape));
    softmax_.template begin<kVectors>();
    for (int64_t key = 0; key < tokens_; key += kKeyBlock) {
      const int64_t keys = std::min(kKeyBlock, tokens_ - key);
      score<kVectors>(key, keys);
      if (!direct_) weigh<kVectors>(key, keys);
    }
    if (logsumexp != nullptr) store_logsumexp(logsumexp, count);
    invert_sums<kVectors>();
    if (!direct_) lanes_to_tokens(result_, kWidth, kWidth, dim_, rows_, row_stride_);
  }

 private:
  int64_t key_block() const { return std::min(tokens_, kKeyBlock); }
  int64_t rows_size(int64_t stride) const { return tokens_ * stride + kLanes<A>; }
  int64_t workspace_size() const {
    const auto padded = Workspace<A>::padded;
    return padded(rows_size(row_stride_)) + padded(rows_size(value_stride_)) + padded(key_block() * kPanel) +
        padded(kPanel * row_stride_ + kLanes<A>) + 2 * padded(row_stride_ * kPanel) + 3 * padded(kPanel);
  }

  // scores_ [keys, queries], turned into probabilities.
  template <int kVectors>
  void score(int64_t key, int64_t keys) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    Vec<A> maxima[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) maxima[v] = Vec<A>(-std::numeric_limits<A>::infinity());
    multiply<Scalars::kRows, kVectors>(
        keys, TileProduct<A>{keys_ + key * row_stride_, row_stride_, query_, kWidth, dim_},
        [scores = scores_, &maxima](int64_t row, auto& sums) {
          Vec<A> tile_maxima[kVectors];
          std::copy_n(maxima, kVectors, tile_maxima);
          for_each_sum(sums, [&](int m, int v, const Vec<A>& score) {
            score.store(scores + (row + m) * kWidth + v * kLanes<A>);
            tile_maxima[v] = larger(score, tile_maxima[v]);
          });
          std::copy_n(tile_maxima, kVectors, maxima);
        },
        [&] { prefetcher_.step(); });
    softmax_.template exponentiate<kVectors>(keys, score_factor<A>(args_.shape), maxima, scores_);
  }

  // result_ [head_dim, queries] = result_ * decay + values^T probabilities
  template <int kVectors>
  void weigh(int64_t key, int64_t keys) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    multiply<Scalars::kColumns, kVectors>(
        dim_, TileProduct<A>{values_ + key * value_stride_, value_stride_, scores_, kWidth, keys},
        [result = result_, decay = softmax_.decay, key](int64_t row, auto& sums) {
          for_each_sum(sums, [&](int m, int v, const Vec<A>& sum) {
            A* target = result + (row + m) * kWidth + v * kLanes<A>;
            const Vec<A> factor = Vec<A>::loadu(decay + v * kLanes<A>);
            (key == 0 ? sum : at::vec::fmadd(Vec<A>::loadu(target), factor, sum)).store(target);
          });
        });
  }

  // Divides by the sums, or leaves their inverses for the direct product.
  template <int kVectors>
  void invert_sums() {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    for (int64_t lane = 0; lane < kWidth; lane += kLanes<A>) {
      const Vec<A> inverse = Vec<A>(1) / Vec<A>::loadu(softmax_.sum + lane);
      inverse.store(softmax_.sum + lane);
      for (int64_t c = 0; !direct_ && c < dim_; ++c) {
        A* row = result_ + c * kWidth + lane;
        (Vec<A>::loadu(row) * inverse).store(row);
      }
    }
  }

  void store_logsumexp(A* logsumexp, int64_t count) {
    for (int64_t lane = 0; lane < count; lane += kLanes<A>) {
      const Vec<A> log2_total = Vec<A>::loadu(softmax_.maximum + lane) + Vec<A>::loadu(softmax_.sum + lane).log2();
      const int64_t stored = std::min(kLanes<A>, count - lane);
      (log2_total * Vec<A>(static_cast<A>(kLn2))).store(logsumexp + lane, static_cast<int>(stored));
    }
  }

 protected:
  const AttnForward& args_;
  int64_t tokens_, dim_;
  bool direct_;  // channels on the lanes of the output
  int64_t row_stride_, value_stride_;
  Workspace<A> workspace_;
  A* keys_;             // [tokens, row_stride]
  A* values_;           // [tokens, value_stride]
  A* scores_;           // [key block, panel]
  A* rows_;             // [panel, row_stride]
  A *query_, *result_;  // [head_dim, panel]
  OnlineSoftmax<A> softmax_;
  RowPrefetcher prefetcher_;  // of the next task's rows
};

template <typename T>
class AttentionForward : ForwardPanel<acc_t<T>> {
  using A = acc_t<T>;
  using Panel = ForwardPanel<A>;
  using Panel::args_, Panel::tokens_, Panel::dim_, Panel::direct_, Panel::row_stride_, Panel::value_stride_,
      Panel::kPanel;
  using Panel::keys_, Panel::values_, Panel::scores_, Panel::rows_, Panel::softmax_, Panel::prefetcher_;

 public:
  explicit AttentionForward(const AttnForward& args) : Panel(args), offsets_(2 * tokens_) {
    fill_token_offsets(args.shape.grid, args.qkv, qkv_offsets());
    fill_token_offsets(args.shape.grid, args.out, out_offsets());
  }

  void run(const Task& task, const Task& next) {
    load_rows(qkv_rows(task, 1), 0, tokens_, keys_, row_stride_);
    load_rows(qkv_rows(task, 2), 0, tokens_, values_, value_stride_);
    const int64_t panels = (tokens_ + kPanel - 1) / kPanel;
    prefetcher_.template start<T>(
        {qkv_rows(next, 0), qkv_rows(next, 1), qkv_rows(next, 2), out_rows(next)}, prefetched_tokens(args_.shape),
        panels * row_blocks<tile_rows(kPanelVectors)>(tokens_));
    for (int64_t first = 0; first < tokens_; first += kPanel) attend(task, first, std::min(kPanel, tokens_ - first));
  }

 private:
  int64_t* qkv_offsets() { return offsets_.data(); }
  int64_t* out_offsets() { return offsets_.data() + tokens_; }
  TokenRows<const T> qkv_rows(const Task& task, int64_t part) {
    return task.rows<const T>(args_.qkv, qkv_offsets(), part);
  }
  TokenRows<T> out_rows(const Task& task) { return task.rows<T>(args_.out, out_offsets(), 0); }

  // Queries [first, first + count) against all keys.
  void attend(const Task& task, int64_t first, int64_t count) {
    load_rows(qkv_rows(task, 0), first, count, rows_, row_stride_);
    A* logsumexp = static_cast<A*>(args_.logsumexp);
    if (logsumexp != nullptr) logsumexp += task.stats_offset() + first;
    with_count<kPanelVectors>(vectors_of<A>(count), [&](auto vectors) {
      constexpr int kVectors = decltype(vectors)::value;
      Panel::template attend<kVectors>(count, logsumexp);
      if (direct_) weigh_direct<kVectors>(out_rows(task), first, count);
    });
    if (!direct_) store_rows(out_rows(task), first, count, rows_, row_stride_);
  }

  // The output rows at once: probabilities [queries, keys] times values [keys, head_dim], over the sums.
  template <int kVectors>
  void weigh_direct(const TokenRows<T>& out, int64_t first, int64_t count) {
    multiply_wide<Scalars::kColumns>(
        count, dim_, TileProduct<A>{scores_, kVectors * kLanes<A>, values_, value_stride_, tokens_},
        [out, first, inverse = softmax_.sum](int64_t row, int64_t column, const Vec<A>& sum) {
          const Vec<A> value = sum * Vec<A>(inverse[row]);
          store_as(value, out[first + row] + column, std::min(out.width - column, kLanes<A>));
        });
  }

  std::vector<int64_t> offsets_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

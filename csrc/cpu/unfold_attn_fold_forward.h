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
#if defined(CPU_CAPABILITY_AVX512_BF16)
#include "cpu/unfold_attn_fold_matrix_unit.h"
#endif

#include <limits>
#include <optional>
#include <type_traits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

constexpr int64_t kKeyBlock = 256;     // keys whose scores for one panel of queries stay in L1
constexpr int64_t kBoundedBlock = 64;  // where nothing is scaled between blocks; for fewer keys a maximum costs less
constexpr int kPanelVectors = 2;       // queries of a panel, in vectors

// The products and the softmax of one panel of queries, in a thread's own memory. F: factors of the products, numbers
// or pairs: of channels in the scores, of keys in the output. A pair whose second key is missing has zeros there.
template <typename F>
class ForwardPanel {
 protected:
  using A = sum_t<F>;
  static constexpr int64_t kPanel = kPanelVectors * kLanes<A>;
  static constexpr int64_t kPer = std::is_same_v<F, Bfloat16Pair> ? 2 : 1;  // values in a factor
  static constexpr bool kMayBound = kPer == 1;  // whether to look for a bound on the scores: |q . k| <= |q| |k|

  explicit ForwardPanel(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        direct_(tokens_ <= kKeyBlock && channels_on_lanes<A>(tokens_, dim_)),
        row_stride_(round_up(dim_ / kPer, kChannelGroup)),
        value_stride_(direct_ ? round_up(dim_, kLanes<A>) : round_up(dim_, kChannelGroup)),
        out_stride_(round_up(dim_, kChannelGroup)),
        factors_(factors_size()),
        keys_(factors_.take(rows_size(tokens_, row_stride_))),
        values_(factors_.take(rows_size(row_pairs(tokens_), value_stride_))),
        rows_(factors_.take(rows_size(kPanel, row_stride_))),
        query_(factors_.take(row_stride_ * kPanel)),
        sums_(sums_size()),
        scores_(sums_.take(key_block() * kPanel)),
        out_rows_(sums_.take(kPanel * out_stride_)),
        result_(sums_.take(out_stride_ * kPanel)),
        softmax_{sums_.take(kPanel), sums_.take(kPanel), sums_.take(kPanel)} {}

  // After the keys have been loaded.
  void begin() {
    if constexpr (kMayBound) longest_key_ = tokens_ < kBoundedBlock ? A(0) : longest_of_keys();
  }

  // The loaded rows of `count` queries against all keys: leaves out_rows_, or with direct_ scores_ and softmax_.
  template <int kVectors>
  void attend(int64_t count, A* logsumexp) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    std::fill(rows_ + count * row_stride_, rows_ + kWidth * row_stride_, F{});
    tokens_to_lanes(rows_, row_stride_, kWidth, dim_ / kPer, query_, kWidth, score_sign<A>(args_.shape));
    bool bounded = false;
    if constexpr (kMayBound) bounded = tokens_ >= kBoundedBlock && bound<kVectors>();
    if (!bounded) softmax_.template begin<kVectors>();
    const int64_t block = bounded && !direct_ ? kBoundedBlock : kKeyBlock;
    for (int64_t key = 0; key < tokens_; key += block) {
      const int64_t keys = std::min(block, tokens_ - key);
      if constexpr (kMayBound) {
        if (bounded) score_bounded<kVectors>(key, keys);
      }
      if (!bounded) score<kVectors>(key, keys);
      if (!direct_) weigh<kVectors>(key, keys);
    }
    if (logsumexp != nullptr) store_logsumexp(logsumexp, count);
    invert_sums<kVectors>();
    if (!direct_) lanes_to_tokens(result_, kWidth, kWidth, dim_, out_rows_, out_stride_);
  }
  static constexpr int64_t row_pairs(int64_t rows) { return (rows + kPer - 1) / kPer; }

 private:
  int64_t key_block() const { return std::min(tokens_, kKeyBlock); }
  static int64_t rows_size(int64_t rows, int64_t stride) { return Workspace<F>::padded(rows * stride + kLanes<A>); }
  int64_t factors_size() const {
    return rows_size(tokens_, row_stride_) + rows_size(row_pairs(tokens_), value_stride_) +
        rows_size(kPanel, row_stride_) + Workspace<F>::padded(row_stride_ * kPanel);
  }
  int64_t sums_size() const {
    const auto padded = Workspace<A>::padded;
    return padded(key_block() * kPanel) + 2 * padded(out_stride_ * kPanel) + 3 * padded(kPanel);
  }

  // The square of the largest length of a key; NaN where one has a NaN, or the largest may be lost to one.
  A longest_of_keys() const {
    constexpr int64_t kCount = kLanes<A>;
    Vec<A> longest(0);
    for (int64_t first = 0; first < tokens_; first += kCount) {
      const int64_t count = std::min(kCount, tokens_ - first);
      Vec<A> squares[kCount];
      for (int64_t i = 0; i < count; ++i) squares[i] = square_in_lanes(keys_ + (first + i) * row_stride_);
      for (int64_t i = count; i < kCount; ++i) squares[i] = Vec<A>(0);
      longest = at::vec::maximum(longest, sums_of_lanes(squares));
    }
    return at::vec::vec_reduce_all<A>([](auto& a, auto& b) { return at::vec::maximum(a, b); }, longest);
  }

  Vec<A> square_in_lanes(const A* row) const {
    Vec<A> sum(0);
    for (int64_t c = 0; c < dim_; c += kLanes<A>) {
      const Vec<A> value = load_first(row + c, std::min(kLanes<A>, dim_ - c));
      sum = at::vec::fmadd(value, value, sum);
    }
    return sum;
  }

  // Begins the statistics of a panel whose queries and the longest key bound its scores; false where they do not, or
  // where there is a NaN.
  template <int kVectors>
  bool bound() {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    const Vec<A> scale(score_factor<A>(args_.shape) * std::sqrt(longest_key_));
    Vec<A> bounds[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Vec<A> square(0);
      for (int64_t c = 0; c < dim_; ++c) {
        const Vec<A> value = Vec<A>::loadu(query_ + c * kWidth + v * kLanes<A>);
        square = at::vec::fmadd(value, value, square);
      }
      bounds[v] = scale * square.sqrt();
    }
    return softmax_.begin_bounded(bounds);
  }

  // scores_ [keys, queries], turned into probabilities.
  template <int kVectors>
  void score(int64_t key, int64_t keys) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    Vec<A> maxima[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) maxima[v] = Vec<A>(-std::numeric_limits<A>::infinity());
    multiply<Scalars::kRows, kVectors>(
        keys, TileProduct<F>{keys_ + key * row_stride_, row_stride_, query_, kWidth, dim_ / kPer},
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
    softmax_.template exponentiate<F, kVectors>(keys, score_factor<A>(args_.shape), maxima, scores_);
  }

  // The same where the scores are bounded: no score is stored.
  template <int kVectors>
  void score_bounded(int64_t key, int64_t keys) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    multiply<Scalars::kRows, kVectors>(
        keys, TileProduct<A>{keys_ + key * row_stride_, row_stride_, query_, kWidth, dim_},
        [scores = scores_, softmax = softmax_, factor = score_factor<A>(args_.shape)](int64_t row, auto& sums) {
          softmax.exponentiate_tile(sums, factor, scores + row * kWidth);
        },
        [&] { prefetcher_.step(); });
  }

  // result_ [head_dim, queries] = result_ * decay + values^T probabilities
  template <int kVectors>
  void weigh(int64_t key, int64_t keys) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    multiply<Scalars::kColumns, kVectors>(
        dim_,
        TileProduct<F>{values_ + key / kPer * value_stride_, value_stride_, probabilities(), kWidth, row_pairs(keys)},
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
  // [key block / kPer, panel], in the place of the scores.
  const F* probabilities() const { return reinterpret_cast<const F*>(scores_); }

  const AttnForward& args_;
  int64_t tokens_, dim_;
  bool direct_;  // channels on the lanes of the output
  int64_t row_stride_, value_stride_, out_stride_;
  Workspace<F> factors_;
  F* keys_;    // [tokens, row_stride]
  F* values_;  // [tokens / kPer, value_stride]
  F* rows_;    // of queries, [panel, row_stride]
  F* query_;   // [head_dim / kPer, panel]
  Workspace<A> sums_;
  A* scores_;    // [key block, panel]
  A* out_rows_;  // [panel, out_stride]
  A* result_;    // [head_dim, panel]
  OnlineSoftmax<A> softmax_;
  A longest_key_ = 0;         // the square of its length
  RowPrefetcher prefetcher_;  // of the next task's rows
};

// T: of the maps; F: factors of the products.
template <typename T, typename F>
class AttentionForwardBy : ForwardPanel<F> {
  using Panel = ForwardPanel<F>;
  using Panel::args_, Panel::tokens_, Panel::dim_, Panel::direct_, Panel::row_stride_, Panel::value_stride_,
      Panel::out_stride_, Panel::kPanel, Panel::kPer, Panel::row_pairs, Panel::probabilities;
  using Panel::keys_, Panel::values_, Panel::rows_, Panel::out_rows_, Panel::softmax_, Panel::prefetcher_;
  using typename Panel::A;

 public:
  explicit AttentionForwardBy(const AttnForward& args) : Panel(args), offsets_(2 * tokens_) {
    fill_token_offsets(args.shape.grid, args.qkv, qkv_offsets());
    fill_token_offsets(args.shape.grid, args.out, out_offsets());
  }

  void run(const Task& task, const Task& next) {
    load_rows(qkv_rows(task, 1), 0, tokens_, keys_, row_stride_);
    load_pairs_of_rows(qkv_rows(task, 2), tokens_, values_, value_stride_);
    Panel::begin();
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
    if (!direct_) store_rows(out_rows(task), first, count, out_rows_, out_stride_);
  }

  // The output rows at once: probabilities [queries, keys] times values [keys, head_dim], over the sums.
  template <int kVectors>
  void weigh_direct(const TokenRows<T>& out, int64_t first, int64_t count) {
    multiply_wide<Scalars::kColumns>(
        count, dim_, TileProduct<F>{probabilities(), kVectors * kLanes<A>, values_, value_stride_, row_pairs(tokens_)},
        [out, first, inverse = softmax_.sum](int64_t row, int64_t column, const Vec<A>& sum) {
          const Vec<A> value = sum * Vec<A>(inverse[row]);
          store_as(value, out[first + row] + column, std::min(out.width - column, kLanes<A>));
        });
  }

  std::vector<int64_t> offsets_;
};

// One thread's attention in the arithmetic that is fastest for T.
template <typename T>
class AttentionForward {
 public:
  explicit AttentionForward(const AttnForward& args) {
#if defined(CPU_CAPABILITY_AVX512_BF16)
    if (std::is_same_v<T, c10::BFloat16> && args.shape.head_dim % 2 == 0) {
      if (has_matrix_unit()) {
        on_unit_.emplace(args);
      } else if (has_fast_pair_products()) {
        by_pairs_.emplace(args);
      }
      if (on_unit_ || by_pairs_) return;
    }
#endif
    by_numbers_.emplace(args);
  }

  void run(const Task& task, const Task& next) {
    if (by_numbers_) return by_numbers_->run(task, next);
#if defined(CPU_CAPABILITY_AVX512_BF16)
    if (on_unit_) return on_unit_->run(task, next);
    by_pairs_->run(task, next);
#endif
  }

 private:
  std::optional<AttentionForwardBy<T, acc_t<T>>> by_numbers_;
#if defined(CPU_CAPABILITY_AVX512_BF16)
  using Factor = std::conditional_t<std::is_same_v<T, c10::BFloat16>, Bfloat16Pair, acc_t<T>>;

  std::optional<AttentionForwardBy<T, Factor>> by_pairs_;
  std::optional<AttentionForwardOnUnit> on_unit_;
#endif
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

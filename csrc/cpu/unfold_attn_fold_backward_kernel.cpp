// Attention among the tokens of one pixel position, backward. The probabilities are recomputed from the logsumexp; a
// task owns the keys and values of its head, so that nothing is summed across threads.
//
// Keys lie on the vector lanes: probabilities and score gradients are [queries, keys], which makes the gradients of the
// keys and values, two of the five products, sums over rows, with head_dim as rows of the result.
#include "cpu/unfold_attn_fold_kernel.h"

#include "cpu/token_io.h"
#include "cpu/unfold_attn_fold_task.h"
#if defined(CPU_CAPABILITY_AVX512_BF16)
#include "cpu/unfold_attn_fold_backward_matrix_unit.h"
#endif

#include <optional>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kQueryBlock = 128;   // queries whose probabilities and gradients for a panel of keys stay in L1
constexpr int64_t kDirectTokens = 64;  // tokens whose probabilities and gradients for all keys stay in L1
constexpr int kKeyVectors = 2;         // keys of a panel, in vectors
constexpr int64_t kKeysAtOnce = 64;    // whose products with a block of queries are added up before they go to memory

// The products of a block of keys with all queries, panel after panel, in a thread's own memory.
template <typename A>
class BackwardPanel {
 protected:
  static constexpr int64_t kPanel = kKeyVectors * kLanes<A>;
  static constexpr int64_t kBlock = kKeysAtOnce;
  static_assert(kBlock % kPanel == 0 && kDirectTokens <= kBlock);

  explicit BackwardPanel(const AttnBackward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        stride_(round_up(dim_, kLanes<A>)),
        direct_(tokens_ <= kDirectTokens),
        score_stride_(direct_ ? round_up(tokens_, kPanel) : kBlock + kPanel),
        workspace_(workspace_size()),
        queries_(workspace_.take(rows_size())),
        keys_(workspace_.take(rows_size())),
        values_(workspace_.take(rows_size())),
        grad_outs_(workspace_.take(rows_size())),
        grad_queries_(workspace_.take(rows_size())),
        probabilities_(workspace_.take(score_size())),
        grad_scores_(workspace_.take(score_size())),
        rows_(workspace_.take(kPanel * stride_)),
        key_lanes_(workspace_.take(stride_ * kBlock)),
        value_lanes_(workspace_.take(stride_ * kBlock)),
        grad_key_lanes_(workspace_.take(stride_ * kBlock)),
        grad_value_lanes_(workspace_.take(stride_ * kBlock)),
        minus_logsumexp_(workspace_.take(tokens_)),
        minus_delta_(workspace_.take(tokens_)) {}

  // A block of keys [first, first + count) against all queries: adds to grad_queries_ and leaves grad_key_lanes_ and
  // grad_value_lanes_, or with direct_ columns of probabilities_ and of grad_out . value in grad_scores_.
  void accumulate(int64_t first, int64_t count) {
    for_each_panel(count, [&](auto vectors, int64_t panel, int64_t /*keys*/) {
      constexpr int64_t kWidth = decltype(vectors)::value * kLanes<A>;
      const int64_t row = (first + panel) * stride_, lanes = panel * stride_;
      tokens_to_lanes(keys_ + row, stride_, kWidth, dim_, key_lanes_ + lanes, kWidth, score_sign<A>(args_.shape));
      tokens_to_lanes(values_ + row, stride_, kWidth, dim_, value_lanes_ + lanes, kWidth, A(1));
    });
    for (int64_t query = 0; query < tokens_; query += kQueryBlock) {
      const int64_t queries = std::min(kQueryBlock, tokens_ - query);
      for_each_panel(count, [&](auto vectors, int64_t panel, int64_t /*keys*/) {
        constexpr int kVectors = decltype(vectors)::value;
        if (direct_) return scores<kVectors, true>(query, queries, panel);
        scores<kVectors, false>(query, queries, panel);
        add_columns<kVectors>(query, queries, panel, A(1), grad_outs_, probabilities_, grad_value_lanes_);
        add_columns<kVectors>(
            query, queries, panel, static_cast<A>(args_.shape.scale), queries_, grad_scores_, grad_key_lanes_);
      });
      if (!direct_) add_grad_queries(query, queries, first, count);
    }
  }

  // Calls function(vectors, first key, keys) for the panels of a block of `count` keys.
  template <typename Function>
  static void for_each_panel(int64_t count, const Function& function) {
    for (int64_t panel = 0; panel < count; panel += kPanel) {
      const int64_t keys = std::min(kPanel, count - panel);
      with_count<kKeyVectors>(vectors_of<A>(keys), [&](auto vectors) { function(vectors, panel, keys); });
    }
  }

  // With direct_: the gradients of the scores from grad_out . value. Delta is the mean over all keys of the very
  // numbers that it is subtracted from: it cancels where one probability is nearly 1, which an output in 16 bits is too
  // rough for. Probabilities add up to 1 but for the rounding of large scores.
  void finish_grad_scores() {
    constexpr int64_t kCount = kLanes<A>;
    alignas(64) A deltas[kCount];
    for (int64_t first = 0; first < tokens_; first += kCount) {
      const int64_t count = std::min(kCount, tokens_ - first);
      const A* probabilities = probabilities_ + first * score_stride_;
      A* grads = grad_scores_ + first * score_stride_;
      Vec<A> sums[kCount], products[kCount];
      for (int64_t i = 0; i < count; ++i) {
        sum_keys(probabilities + i * score_stride_, grads + i * score_stride_, sums[i], products[i]);
      }
      (sums_of_lanes(products) / sums_of_lanes(sums)).store(deltas);
      for (int64_t i = 0; i < count; ++i, probabilities += score_stride_, grads += score_stride_) {
        const Vec<A> delta(deltas[i]);
        for (int64_t key = 0; key < tokens_; key += kLanes<A>) {
          const Vec<A> difference = Vec<A>::loadu(grads + key) - delta;
          (Vec<A>::loadu(probabilities + key) * difference).store(grads + key);
        }
      }
    }
  }

  // Panels of keys may be read past the last token.
  int64_t rows_size() const { return round_up(tokens_, kPanel) * stride_; }

 private:
  int64_t score_size() const { return (direct_ ? tokens_ : std::min(tokens_, kQueryBlock)) * score_stride_; }
  int64_t workspace_size() const {
    const auto padded = Workspace<A>::padded;
    return 5 * padded(rows_size()) + 2 * padded(score_size()) + padded(kPanel * stride_) +
        4 * padded(kBlock * stride_) + 2 * padded(tokens_);
  }

  // Partial sums, in lanes, of the weights and of weights * values; columns past the last key hold anything.
  void sum_keys(const A* weights, const A* values, Vec<A>& sum, Vec<A>& product) const {
    sum = Vec<A>(0), product = Vec<A>(0);
    for (int64_t key = 0; key < tokens_; key += kLanes<A>) {
      const int64_t count = std::min(kLanes<A>, tokens_ - key);
      const Vec<A> weight = load_first(weights + key, count);
      sum = sum + weight;
      product = at::vec::fmadd(weight, load_first(values + key, count), product);
    }
  }

  // probabilities = 2**(scores - logsumexp) and grad_scores = scale * probabilities * (grad_out . value - delta), the
  // scale being applied to the keys and queries that they are multiplied with. With kDirect grad_out . value.
  template <int kVectors, bool kDirect>
  void scores(int64_t query, int64_t queries, int64_t panel) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    A *probabilities = probabilities_ + panel, *grad_scores = grad_scores_ + panel;
    const auto at = [stride = score_stride_](int64_t row, int v) { return row * stride + v * kLanes<A>; };
    multiply<Scalars::kRows, kVectors>(
        queries, TileProduct<A>{queries_ + query * stride_, stride_, key_lanes_ + panel * stride_, kWidth, dim_},
        [=, factor = score_factor<A>(args_.shape), shift = minus_logsumexp_ + query](int64_t row, auto& sums) {
          for_each_sum(sums, [&](int m, int v, const Vec<A>& product) {
            const Vec<A> score = at::vec::fmadd(product, Vec<A>(factor), Vec<A>(shift[row + m]));
            exp2_score<A>(score).store(probabilities + at(row + m, v));
          });
        },
        [&] { prefetcher_.step(); });
    multiply<Scalars::kRows, kVectors>(
        queries, TileProduct<A>{grad_outs_ + query * stride_, stride_, value_lanes_ + panel * stride_, kWidth, dim_},
        [=, shift = minus_delta_ + query](int64_t row, auto& sums) {
          for_each_sum(sums, [&](int m, int v, const Vec<A>& product) {
            A* target = grad_scores + at(row + m, v);
            if constexpr (kDirect) return product.store(target);
            const Vec<A> probability = Vec<A>::loadu(probabilities + at(row + m, v));
            (probability * (product + Vec<A>(shift[row + m]))).store(target);
          });
        });
  }

  // lanes [head_dim, panel of keys] (+)= factor * rows^T [head_dim, queries] weights [queries, keys]; the first block
  // of queries overwrites.
  template <int kVectors>
  void add_columns(int64_t query, int64_t queries, int64_t panel, A factor, const A* rows, const A* weights, A* lanes) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    multiply<Scalars::kColumns, kVectors>(
        dim_, TileProduct<A>{rows + query * stride_, stride_, weights + panel, score_stride_, queries},
        [lanes = lanes + panel * stride_, query, factor](int64_t row, auto& sums) {
          for_each_sum(sums, [&](int m, int v, const Vec<A>& sum) {
            A* target = lanes + (row + m) * kWidth + v * kLanes<A>;
            const Vec<A> old = query == 0 ? Vec<A>(0) : Vec<A>::loadu(target);
            at::vec::fmadd(sum, Vec<A>(factor), old).store(target);
          });
        });
  }

  // grad_queries (+)= scale * grad_scores [queries, keys] keys [keys, head_dim]; the first block of keys overwrites.
  void add_grad_queries(int64_t query, int64_t queries, int64_t first, int64_t count) {
    const Vec<A> scale(static_cast<A>(args_.shape.scale));
    multiply_wide<Scalars::kRows>(
        queries, dim_, TileProduct<A>{grad_scores_, score_stride_, keys_ + first * stride_, stride_, count},
        [grad_rows = grad_queries_ + query * stride_, stride = stride_, scale, first](
            int64_t row, int64_t column, const Vec<A>& sum) {
          A* target = grad_rows + row * stride + column;
          const Vec<A> old = first == 0 ? Vec<A>(0) : Vec<A>::loadu(target);
          at::vec::fmadd(sum, scale, old).store(target);
        });
  }

 protected:
  const AttnBackward& args_;
  int64_t tokens_, dim_, stride_;
  bool direct_;  // all probabilities at once
  int64_t score_stride_;
  Workspace<A> workspace_;
  A *queries_, *keys_, *values_, *grad_outs_, *grad_queries_;  // [tokens, stride]
  A *probabilities_, *grad_scores_;                            // [query block, score_stride]
  A* rows_;                                                    // [panel, stride]
  A *key_lanes_, *value_lanes_;                                // [panels of a block, stride, panel]
  A *grad_key_lanes_, *grad_value_lanes_;                      // [panels of a block, stride, panel]
  A *minus_logsumexp_, *minus_delta_;                          // [tokens]
  RowPrefetcher prefetcher_;
};

template <typename T>
class Backward : BackwardPanel<acc_t<T>> {
  using A = acc_t<T>;
  using Panel = BackwardPanel<A>;
  using Panel::args_, Panel::tokens_, Panel::dim_, Panel::stride_, Panel::direct_, Panel::score_stride_, Panel::kPanel,
      Panel::kBlock;
  using Panel::grad_key_lanes_, Panel::grad_value_lanes_, Panel::minus_logsumexp_, Panel::minus_delta_;
  using Panel::probabilities_, Panel::grad_scores_, Panel::rows_, Panel::prefetcher_, Panel::rows_size;
  using Panel::queries_, Panel::keys_, Panel::values_, Panel::grad_outs_, Panel::grad_queries_;

 public:
  explicit Backward(const AttnBackward& args) : Panel(args), offsets_(4 * tokens_) {
    const MapView* maps[] = {&args.qkv, &args.out, &args.grad_out, &args.grad_qkv};
    for (int map = 0; map < 4; ++map) fill_token_offsets(args.shape.grid, *maps[map], offsets(map));
  }

  void run(const Task& task, const Task& next) {
    load(task);
    start_prefetch(next);
    for (int64_t first = 0; first < tokens_; first += kBlock) {
      const int64_t count = std::min(kBlock, tokens_ - first);
      Panel::accumulate(first, count);
      if (direct_) continue;
      Panel::for_each_panel(count, [&](auto vectors, int64_t panel, int64_t keys) {
        constexpr int kVectors = decltype(vectors)::value;
        const int64_t lanes = panel * stride_;
        store_lanes<kVectors>(grad_rows(task, 1), first + panel, keys, grad_key_lanes_ + lanes);
        store_lanes<kVectors>(grad_rows(task, 2), first + panel, keys, grad_value_lanes_ + lanes);
      });
    }
    if (direct_) {
      Panel::finish_grad_scores();
      store_direct(task);
    } else {
      store_rows(grad_rows(task, 0), 0, tokens_, grad_queries_, stride_);
    }
  }

 private:
  enum Map { kQkv, kOut, kGradOut, kGradQkv };

  int64_t* offsets(int map) { return offsets_.data() + map * tokens_; }
  TokenRows<const T> qkv_rows(const Task& task, int64_t part) {
    return task.rows<const T>(args_.qkv, offsets(kQkv), part);
  }
  TokenRows<T> grad_rows(const Task& task, int64_t part) {
    return task.rows<T>(args_.grad_qkv, offsets(kGradQkv), part);
  }

  void load(const Task& task) {
    load_rows(qkv_rows(task, 0), 0, tokens_, queries_, stride_);
    load_rows(qkv_rows(task, 1), 0, tokens_, keys_, stride_);
    load_rows(qkv_rows(task, 2), 0, tokens_, values_, stride_);
    load_rows(task.rows<const T>(args_.grad_out, offsets(kGradOut), 0), 0, tokens_, grad_outs_, stride_);
    for (A* rows : {keys_, values_}) std::fill(rows + tokens_ * stride_, rows + rows_size(), A(0));
    const A* logsumexp = static_cast<const A*>(args_.logsumexp) + task.stats_offset();
    for (int64_t n = 0; n < tokens_; ++n) minus_logsumexp_[n] = logsumexp[n] * static_cast<A>(-kLog2E);
    if (!direct_) load_delta(task);
  }

  // The rows that the next task reads and writes.
  void start_prefetch(const Task& next) {
    const auto grad_out = next.rows<const T>(args_.grad_out, offsets(kGradOut), 0);
    const auto delta_source = direct_ ? grad_out : next.rows<const T>(args_.out, offsets(kOut), 0);
    const int64_t panels = (tokens_ + kPanel - 1) / kPanel;
    prefetcher_.template start<T>(
        {qkv_rows(next, 0), qkv_rows(next, 1), qkv_rows(next, 2), grad_out, delta_source, grad_rows(next, 0),
         grad_rows(next, 1), grad_rows(next, 2)},
        prefetched_tokens(args_.shape), panels * row_blocks<tile_rows(kKeyVectors)>(tokens_));
  }

  // delta = out . grad_out of every token, where all keys at once are too many.
  void load_delta(const Task& task) {
    const auto out = task.rows<const T>(args_.out, offsets(kOut), 0);
    constexpr int64_t kCount = kLanes<A>;
    for (int64_t first = 0; first < tokens_; first += kCount) {
      const int64_t count = std::min(kCount, tokens_ - first);
      Vec<A> products[kCount];
      for (int64_t i = 0; i < count; ++i) {
        const T* row = out[first + i];
        const A* grad = grad_outs_ + (first + i) * stride_;
        Vec<A> sum(0);
        int64_t c = 0;
        for (; c + kLanes<A> <= dim_; c += kLanes<A>) {
          sum = at::vec::fmadd(load_as<A>(row + c), Vec<A>::loadu(grad + c), sum);
        }
        if (c < dim_) sum = at::vec::fmadd(load_as<A>(row + c, dim_ - c), Vec<A>::loadu(grad + c), sum);
        products[i] = sum;
      }
      (Vec<A>(0) - sums_of_lanes(products)).store(minus_delta_ + first, static_cast<int>(count));
    }
  }

  template <int kVectors>
  void store_lanes(const TokenRows<T>& tokens, int64_t first, int64_t count, const A* lanes) {
    constexpr int64_t kWidth = kVectors * kLanes<A>;
    lanes_to_tokens(lanes, kWidth, kWidth, dim_, rows_, stride_);
    store_rows(tokens, first, count, rows_, stride_);
  }

  // With all probabilities at hand the gradients are whole products, whose rows go to the map at once.
  void store_direct(const Task& task) {
    const A scale = static_cast<A>(args_.shape.scale);
    store_product<Scalars::kColumns>(grad_rows(task, 2), probabilities_, grad_outs_, A(1));
    store_product<Scalars::kColumns>(grad_rows(task, 1), grad_scores_, queries_, scale);
    store_product<Scalars::kRows>(grad_rows(task, 0), grad_scores_, keys_, scale);
  }

  template <Scalars kLayout>
  void store_product(const TokenRows<T>& tokens, const A* weights, const A* rows, A factor) {
    multiply_wide<kLayout>(
        tokens_, dim_, TileProduct<A>{weights, score_stride_, rows, stride_, tokens_},
        [tokens, factor](int64_t row, int64_t column, const Vec<A>& sum) {
          store_as(sum * Vec<A>(factor), tokens[row] + column, std::min(tokens.width - column, kLanes<A>));
        });
  }

  std::vector<int64_t> offsets_;
};

// One thread's gradients in the arithmetic that is fastest for T.
template <typename T>
class FastestBackward {
 public:
  explicit FastestBackward(const AttnBackward& args) {
#if defined(CPU_CAPABILITY_AVX512_BF16)
    constexpr int64_t kFewTokens = 16;  // too few to fill the tiles
    const AttnShape& shape = args.shape;
    const bool fits = shape.head_dim % 2 == 0 && shape.grid.tokens() > kFewTokens;
    if (std::is_same_v<T, c10::BFloat16> && fits && has_matrix_unit()) {
      on_unit_.emplace(args);
      return;
    }
#endif
    by_numbers_.emplace(args);
  }

  void run(const Task& task, const Task& next) {
    if (by_numbers_) return by_numbers_->run(task, next);
#if defined(CPU_CAPABILITY_AVX512_BF16)
    on_unit_->run(task, next);
#endif
  }

 private:
  std::optional<Backward<T>> by_numbers_;
#if defined(CPU_CAPABILITY_AVX512_BF16)
  std::optional<AttentionBackwardOnUnit> on_unit_;
#endif
};

}  // namespace

void unfold_attn_fold_backward(const AttnBackward& args) { for_each_task<FastestBackward>(args, 5); }

}  // namespace mobilevit::cpu::CPU_CAPABILITY

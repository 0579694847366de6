// Attention among the tokens of one pixel position, forward, in bfloat16 on the matrix unit.
//
// Queries are rows: scores are [queries, keys], whose probabilities are rows again, as the second product reads them.
// All operands are padded with zeros to whole tiles.
#pragma once

#include "cpu/matrix_unit.h"
#include "cpu/token_io.h"
#include "cpu/token_tiles.h"
#include "cpu/unfold_attn_fold_task.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

// The statistics of 16 rows of scores, in lanes, and their probabilities (arXiv 1805.02867).
struct SoftmaxRows {
  static constexpr int64_t kRows = MatrixUnit::kRows;

  alignas(64) float maximum[kRows];  // of the scores so far, in units of log 2
  alignas(64) float sum[kRows];      // of 2**(score - origin), the origin being the maximum, or 0 where that is -inf
  alignas(64) float decay[kRows];    // the factor of all that was summed before the last block

  void begin() {
    std::fill_n(maximum, kRows, -std::numeric_limits<float>::infinity());
    std::fill_n(sum, kRows, 0.0f);
  }

  // Rows of scores [16, padded keys] become rows of bfloat16 in their place, 2**(factor * scores - origin) for the
  // first `keys`, zeros behind them. factor >= 0. Calls meanwhile(row) before each row.
  template <typename Meanwhile>
  void exponentiate(
      float* scores, int64_t keys, int64_t padded, int64_t stride, float factor, const Meanwhile& meanwhile) {
    const Vec<float> scale(factor);
    const Vec<float> old_maximum = Vec<float>::loadu(maximum);
    const Vec<float> new_maximum = larger(old_maximum, maxima(scores, keys, stride) * scale);
    const auto nothing =
        _mm512_cmp_ps_mask(new_maximum, _mm512_set1_ps(-std::numeric_limits<float>::infinity()), _CMP_EQ_OQ);
    // A row without a score above -inf yet must stay at sum 0 rather than turn NaN.
    const Vec<float> origin = _mm512_mask_blend_ps(nothing, new_maximum, _mm512_setzero_ps());
    alignas(64) float origins[kRows];
    origin.store(origins);
    new_maximum.store(maximum);
    const Vec<float> block_decay = exp2_score<float>(old_maximum - origin);
    block_decay.store(decay);
    Vec<float> sums[kRows];
    for (int64_t row = 0; row < kRows; ++row) {
      meanwhile(row);
      sums[row] = exponentiate_row(scores + row * stride, keys, padded, scale, Vec<float>(origins[row]));
    }
    at::vec::fmadd(Vec<float>::loadu(sum), block_decay, sums_of_lanes(sums)).store(sum);
  }

 private:
  static Vec<float> maxima(const float* scores, int64_t keys, int64_t stride) {
    constexpr int64_t kLanes = Vec<float>::size();
    const __m512 lowest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    Vec<float> maxima[kRows];
    for (int64_t row = 0; row < kRows; ++row, scores += stride) {
      __m512 result = lowest;
      int64_t key = 0;
      // max returns its second operand where one is NaN.
      for (; key + kLanes <= keys; key += kLanes) result = _mm512_max_ps(_mm512_loadu_ps(scores + key), result);
      if (key < keys) {
        result = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, lanes_mask(keys - key), scores + key), result);
      }
      maxima[row] = result;
    }
    return joined_lanes(maxima, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  }

  static __mmask16 lanes_mask(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

  static Vec<float> exponentiate_row(
      float* scores, int64_t keys, int64_t padded, const Vec<float>& scale, const Vec<float>& origin) {
    constexpr int64_t kLanes = Vec<float>::size();
    auto* p = reinterpret_cast<c10::BFloat16*>(scores);
    const auto probability = [&](int64_t key) {
      return exp2_for_bfloat16(at::vec::fmsub(Vec<float>::loadu(scores + key), scale, origin));
    };
    const auto masked = [&](int64_t key) -> Vec<float> {
      if (key >= keys) return Vec<float>(0);
      return _mm512_maskz_mov_ps(lanes_mask(std::min(keys - key, kLanes)), probability(key));
    };
    const auto store = [p](int64_t key, const Vec<float>& first, const Vec<float>& second) {
      _mm512_storeu_si512(p + key, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
    };
    Vec<float> sums[2] = {Vec<float>(0), Vec<float>(0)};
    int64_t key = 0;
    for (; key + 2 * kLanes <= keys; key += 2 * kLanes) {
      const Vec<float> first = probability(key), second = probability(key + kLanes);
      sums[0] = sums[0] + first, sums[1] = sums[1] + second;
      store(key, first, second);
    }
    for (; key < padded; key += 2 * kLanes) {
      const Vec<float> first = masked(key), second = masked(key + kLanes);
      sums[0] = sums[0] + first, sums[1] = sums[1] + second;
      store(key, first, second);
    }
    return sums[0] + sums[1];
  }
};

// Blocks of queries times blocks of keys, one after another: while the vector units exponentiate the scores of one, the
// matrix unit computes those of the next.
class AttentionForwardOnUnit {
  using Pair = Bfloat16Pair;

 public:
  explicit AttentionForwardOnUnit(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        depth_(round_up(dim_ / 2, MatrixUnit::kPairs)),
        columns_(round_up(dim_, MatrixUnit::kColumns)),
        keys_(round_up(tokens_, kPackedColumns)),
        query_blocks_((tokens_ + kQueries - 1) / kQueries),
        key_blocks_((tokens_ + kKeyBlock - 1) / kKeyBlock),
        score_stride_(std::min(keys_, kKeyBlock) + kLine),
        factors_(factors_size()),
        rows_(factors_.take(std::max(keys_, 2 * kQueries) * depth_)),
        key_panels_(factors_.take(depth_ * keys_)),
        value_pairs_(factors_.take(keys_ / 2 * columns_)),
        sums_(2 * Workspace<float>::padded(kQueries * score_stride_) + kQueries * columns_),
        scores_{sums_.take(kQueries * score_stride_), sums_.take(kQueries * score_stride_)},
        out_rows_(sums_.take(kQueries * columns_)),
        offsets_(2 * tokens_) {
    fill_token_offsets(args.shape.grid, args.qkv, qkv_offsets());
    fill_token_offsets(args.shape.grid, args.out, out_offsets());
  }

  void run(const Task& task, const Task& next) {
    load_keys(task);
    load_values(task);
    prefetcher_.start<c10::BFloat16>(
        {rows(next, 0), rows(next, 1), rows(next, 2), out_rows(next)}, prefetched_tokens(args_.shape), query_blocks_);
    const int64_t steps = query_blocks_ * key_blocks_;
    begin_scores(task, 0);
    for (int64_t panel = 0; panel < panels(0); ++panel) score(0, panel);
    for (int64_t step = 0; step < steps; ++step) {
      const bool last = step + 1 == steps;
      if (!last) begin_scores(task, step + 1);
      exponentiate(step, last);
      weigh(step);
      if ((step + 1) % key_blocks_ == 0) finish(task, step / key_blocks_);
    }
  }

 private:
  static constexpr int64_t kQueries = 2 * MatrixUnit::kRows;
  static constexpr int64_t kKeyBlock = 256;  // keys whose scores with a block of queries stay in the cache
  static constexpr int64_t kLine = 16;       // keeps rows out of the same few cache sets

  int64_t factors_size() const {
    const auto padded = Workspace<Pair>::padded;
    return padded(std::max(keys_, 2 * kQueries) * depth_) + padded(depth_ * keys_) + padded(keys_ / 2 * columns_);
  }
  int64_t* qkv_offsets() { return offsets_.data(); }
  int64_t* out_offsets() { return offsets_.data() + tokens_; }
  TokenRows<const c10::BFloat16> rows(const Task& task, int64_t part) {
    return task.rows<const c10::BFloat16>(args_.qkv, qkv_offsets(), part);
  }
  TokenRows<c10::BFloat16> out_rows(const Task& task) { return task.rows<c10::BFloat16>(args_.out, out_offsets(), 0); }

  // Of a step.
  int64_t first_query(int64_t step) const { return step / key_blocks_ * kQueries; }
  int64_t queries(int64_t step) const { return std::min(kQueries, tokens_ - first_query(step)); }
  int64_t padded_queries(int64_t step) const { return round_up(queries(step), MatrixUnit::kRows); }
  int64_t first_key(int64_t step) const { return step % key_blocks_ * kKeyBlock; }
  int64_t keys(int64_t step) const { return std::min(kKeyBlock, tokens_ - first_key(step)); }
  int64_t panels(int64_t step) const { return (keys(step) + kPackedColumns - 1) / kPackedColumns; }
  Pair* query_rows(int64_t step) const { return rows_ + step / key_blocks_ % 2 * kQueries * depth_; }
  float* scores(int64_t step) const { return scores_[step % 2]; }

  void load_keys(const Task& task) {
    load_padded_rows(rows(task, 1), 0, tokens_, keys_, rows_, depth_);
    rows_to_panels(rows_, keys_, depth_, score_sign<float>(args_.shape), key_panels_);
  }
  void load_values(const Task& task) { load_padded_pairs(rows(task, 2), tokens_, keys_, value_pairs_, columns_); }

  // The rows of queries that a step needs and the one before it had not.
  void begin_scores(const Task& task, int64_t step) {
    if (step % key_blocks_ != 0) return;
    load_padded_rows(rows(task, 0), first_query(step), queries(step), padded_queries(step), query_rows(step), depth_);
  }

  // A panel of keys.
  void score(int64_t step, int64_t panel) {
    const auto keys = PanelMatrix<Pair>::packed(key_panels_ + first_key(step) * depth_, depth_);
    const int64_t column = panel * kPackedColumns;
    unit_.multiply_whole<false>(
        padded_queries(step), kPackedColumns, depth_, {query_rows(step), depth_},
        {keys.at(column), keys.row_stride, keys.panel_stride}, scores(step) + column, score_stride_);
  }

  // The scores of a step, and between their rows the products of the next one.
  void exponentiate(int64_t step, bool last) {
    if (step % key_blocks_ == 0) {
      for (SoftmaxRows& softmax : softmax_) softmax.begin();
    }
    const float factor = score_factor<float>(args_.shape);
    const int64_t all = last ? 0 : panels(step + 1), rows = padded_queries(step);
    int64_t panel = 0;
    for (int64_t first = 0; first < rows; first += MatrixUnit::kRows) {
      softmax_[first / MatrixUnit::kRows].exponentiate(
          scores(step) + first * score_stride_, keys(step), panels(step) * kPackedColumns, score_stride_, factor,
          [&](int64_t row) {
            for (; panel * rows < all * (first + row + 1); ++panel) score(step + 1, panel);
            if (last && row % 4 == 0) MatrixUnit::keep_awake();
          });
    }
    prefetcher_.step();
  }

  // out_rows_ = out_rows_ * decay + probabilities values
  void weigh(int64_t step) {
    const int64_t key = first_key(step), depth = panels(step) * kPackedColumns / 2, rows = padded_queries(step);
    const RowMajor<Pair> probabilities{reinterpret_cast<const Pair*>(scores(step)), score_stride_};
    const auto values = PanelMatrix<Pair>::row_major(value_pairs_ + key / 2 * columns_, columns_);
    if (key == 0) {
      return unit_.multiply_whole<false>(rows, columns_, depth, probabilities, values, out_rows_, columns_);
    }
    for (int64_t row = 0; row < rows; ++row) {
      scale_row(out_rows_ + row * columns_, softmax_[row / MatrixUnit::kRows].decay[row % MatrixUnit::kRows]);
    }
    unit_.multiply_whole<true>(rows, columns_, depth, probabilities, values, out_rows_, columns_);
  }

  void scale_row(float* row, float factor) const {
    for (int64_t c = 0; c < columns_; c += MatrixUnit::kColumns) {
      (Vec<float>::loadu(row + c) * Vec<float>(factor)).store(row + c);
    }
  }

  // The output of a block of queries.
  void finish(const Task& task, int64_t block) {
    const int64_t first = block * kQueries, count = std::min(kQueries, tokens_ - first);
    float* logsumexp = static_cast<float*>(args_.logsumexp);
    for (int64_t row = 0; row < count; row += MatrixUnit::kRows) {
      const SoftmaxRows& softmax = softmax_[row / MatrixUnit::kRows];
      const int64_t rows = std::min(MatrixUnit::kRows, count - row);
      const Vec<float> sum = Vec<float>::loadu(softmax.sum);
      if (logsumexp != nullptr) {
        const Vec<float> log2_total = Vec<float>::loadu(softmax.maximum) + sum.log2();
        const Vec<float> result = log2_total * Vec<float>(static_cast<float>(kLn2));
        result.store(logsumexp + task.stats_offset() + first + row, static_cast<int>(rows));
      }
      alignas(64) float inverse[MatrixUnit::kRows];
      (Vec<float>(1) / sum).store(inverse);
      for (int64_t i = 0; i < rows; ++i) scale_row(out_rows_ + (row + i) * columns_, inverse[i]);
    }
    store_rows(out_rows(task), first, count, out_rows_, columns_);
  }

  const AttnForward& args_;
  int64_t tokens_, dim_;
  int64_t depth_;    // pairs of channels of a padded head
  int64_t columns_;  // channels of one
  int64_t keys_;     // of all tokens, padded
  int64_t query_blocks_, key_blocks_, score_stride_;
  Workspace<Pair> factors_;
  Pair* rows_;         // of the keys, then of two blocks of queries, [.., depth_]
  Pair* key_panels_;   // [keys_ / 32, depth_, 32]
  Pair* value_pairs_;  // [keys_ / 2, columns_]
  Workspace<float> sums_;
  float* scores_[2];  // [kQueries, score_stride_], of a step and the next
  float* out_rows_;   // [kQueries, columns_]
  SoftmaxRows softmax_[kQueries / MatrixUnit::kRows];
  MatrixUnit unit_;
  RowPrefetcher prefetcher_;  // of the next task's rows
  std::vector<int64_t> offsets_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

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
#include <cstring>
#include <limits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

// The statistics of 16 rows of scores, in lanes, and their probabilities (arXiv 1805.02867).
struct SoftmaxRows {
  static constexpr int64_t kRows = MatrixUnit::kRows;

  alignas(64) float origin[kRows];  // in units of log 2: of the scores so far the largest, or 0 for all
  alignas(64) float sum[kRows];     // of 2**(score - origin); where the origin is -inf, of 2**score
  alignas(64) float decay[kRows];   // the factor of all that was summed before the last block

  // Without a bound on the scores the origin is their maximum.
  void begin(bool bounded) {
    std::fill_n(origin, kRows, bounded ? 0.0f : -std::numeric_limits<float>::infinity());
    std::fill_n(sum, kRows, 0.0f);
  }

  // Rows of scores [16, padded keys] become rows of bfloat16 in their place, 2**(factor * scores - origin) for the
  // first `keys`, zeros behind them. factor >= 0.
  template <typename Meanwhile>
  void exponentiate(
      float* scores, int64_t keys, int64_t padded, int64_t stride, float factor, bool bounded,
      const Meanwhile& meanwhile) {
    if (!bounded) move_origin(scores, keys, stride, factor);
    const Vec<float> scale(factor);
    Vec<float> sums[kRows];
    for (int64_t row = 0; row < kRows; ++row) {
      if (row % (bounded ? kRows : 4) == 0) MatrixUnit::keep_awake();
      meanwhile(row);
      const Vec<float> shift(origin[row] == -std::numeric_limits<float>::infinity() ? 0.0f : origin[row]);
      sums[row] = exponentiate_row(scores + row * stride, keys, padded, scale, shift);
    }
    (Vec<float>::loadu(sum) + sums_of_lanes(sums)).store(sum);
  }

 private:
  // To the maximum of what was and of these scores.
  void move_origin(const float* scores, int64_t keys, int64_t stride, float factor) {
    const Vec<float> old_origin = Vec<float>::loadu(origin);
    const Vec<float> new_origin = larger(old_origin, maxima(scores, keys, stride) * Vec<float>(factor));
    const auto nothing =
        _mm512_cmp_ps_mask(new_origin, _mm512_set1_ps(-std::numeric_limits<float>::infinity()), _CMP_EQ_OQ);
    // A row without a score above -inf yet must stay at sum 0 rather than turn NaN.
    const Vec<float> shift = _mm512_mask_blend_ps(nothing, new_origin, _mm512_setzero_ps());
    const Vec<float> block_decay = exp2_score<float>(old_origin - shift);
    new_origin.store(origin);
    block_decay.store(decay);
    (Vec<float>::loadu(sum) * block_decay).store(sum);
  }

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

// Blocks of queries times blocks of keys, one after another. Where the lengths of queries and keys bound the scores, as
// they mostly do, no maximum is needed (|q . k| <= |q| |k|): blocks of keys are then small, for nothing has to be
// scaled between them, and their scores stay in L1.
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
        factors_(factors_size()),
        rows_(factors_.take(std::max(keys_, kQueries) * depth_)),
        key_panels_(factors_.take(depth_ * keys_)),
        value_pairs_(factors_.take(keys_ / 2 * columns_)),
        sums_(kQueries * (score_stride(kKeyBlock) + columns_)),
        scores_(sums_.take(kQueries * score_stride(kKeyBlock))),
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
    const float longest_key = longest_of_keys();
    for (int64_t first = 0; first < tokens_; first += kQueries) attend(task, first, longest_key);
  }

 private:
  static constexpr int64_t kQueries = 2 * MatrixUnit::kRows;
  static constexpr int64_t kKeyBlock = 256;     // keys whose scores with a block of queries stay in the cache
  static constexpr int64_t kBoundedBlock = 64;  // where nothing is scaled between blocks
  // In units of log 2: sums of 2**score times values up to 1e26 stay finite.
  static constexpr float kMaxBound = 40;
  static constexpr int64_t kLine = 16;  // keeps rows out of the same few cache sets

  int64_t factors_size() const {
    const auto padded = Workspace<Pair>::padded;
    return padded(std::max(keys_, kQueries) * depth_) + padded(depth_ * keys_) + padded(keys_ / 2 * columns_);
  }
  int64_t score_stride(int64_t block) const { return std::min(keys_, block) + kLine; }
  int64_t* qkv_offsets() { return offsets_.data(); }
  int64_t* out_offsets() { return offsets_.data() + tokens_; }
  TokenRows<const c10::BFloat16> rows(const Task& task, int64_t part) {
    return task.rows<const c10::BFloat16>(args_.qkv, qkv_offsets(), part);
  }
  TokenRows<c10::BFloat16> out_rows(const Task& task) { return task.rows<c10::BFloat16>(args_.out, out_offsets(), 0); }

  void load_keys(const Task& task) {
    load_padded_rows(rows(task, 1), 0, tokens_, keys_, rows_, depth_);
    rows_to_panels(rows_, keys_, depth_, score_sign<float>(args_.shape), key_panels_);
  }
  void load_values(const Task& task) { load_padded_pairs(rows(task, 2), tokens_, keys_, value_pairs_, columns_); }

  // Whether scores are known to be small, from squares of the factor and of the longest key. Not where one is NaN; for
  // few keys a maximum costs less.
  bool is_bounded(float factor, float longest_key) const {
    if (tokens_ < kBoundedBlock) return false;
    return factor * longest_key * longest_of_queries() <= kMaxBound * kMaxBound;
  }

  // The square of the largest length of a key, if anybody wants to know. Squares compare as their bits do, and NaN as
  // the largest of all.
  float longest_of_keys() const {
    if (tokens_ < kBoundedBlock) return 0;
    __m512i longest = _mm512_setzero_si512();
    for (int64_t key = 0; key < keys_; key += MatrixUnit::kColumns) {
      const Pair* pairs = key_panels_ + key / kPackedColumns * kPackedColumns * depth_ + key % kPackedColumns;
      __m512 square = _mm512_setzero_ps();
      for (int64_t c = 0; c < dim_ / 2; ++c) square = add_squares(pairs + c * kPackedColumns, square);
      longest = _mm512_max_epu32(longest, _mm512_castps_si512(square));
    }
    return largest(longest);
  }

  // The same of the queries in rows_.
  float longest_of_queries() const {
    __m512i longest = _mm512_setzero_si512();
    for (int64_t first = 0; first < kQueries; first += MatrixUnit::kRows) {
      Vec<float> squares[MatrixUnit::kRows];
      for (int64_t i = 0; i < MatrixUnit::kRows; ++i) {
        __m512 square = _mm512_setzero_ps();
        for (int64_t c = 0; c < depth_; c += MatrixUnit::kPairs) {
          square = add_squares(rows_ + (first + i) * depth_ + c, square);
        }
        squares[i] = square;
      }
      longest = _mm512_max_epu32(longest, _mm512_castps_si512(sums_of_lanes(squares)));
    }
    return largest(longest);
  }

  static __m512 add_squares(const Pair* pairs, const __m512& sum) {
    const auto vector = Operands<Pair>::load(pairs);
    return Operands<Pair>::multiply_add(vector, vector, sum);
  }
  static float largest(const __m512i& bits) {
    const uint32_t result = _mm512_reduce_max_epu32(bits);
    float value;
    std::memcpy(&value, &result, sizeof(value));
    return value;
  }

  // A block of queries against all keys.
  void attend(const Task& task, int64_t first, float longest_key) {
    const int64_t queries = std::min(kQueries, tokens_ - first);
    load_padded_rows(rows(task, 0), first, queries, kQueries, rows_, depth_);
    const float factor = score_factor<float>(args_.shape);
    const bool bounded = is_bounded(factor * factor, longest_key);
    const int64_t block = bounded ? kBoundedBlock : kKeyBlock, padded_queries = round_up(queries, MatrixUnit::kRows);
    score_stride_ = score_stride(block);
    for (SoftmaxRows& softmax : softmax_) softmax.begin(bounded);
    for (int64_t key = 0; key < tokens_; key += block) {
      const int64_t keys = std::min(block, tokens_ - key), padded_keys = round_up(keys, kPackedColumns);
      score(key, padded_keys, padded_queries);
      for (int64_t row = 0; row < padded_queries; row += MatrixUnit::kRows) {
        softmax_[row / MatrixUnit::kRows].exponentiate(
            scores_ + row * score_stride_, keys, padded_keys, score_stride_, factor, bounded,
            [&](int64_t i) { prefetch(key, padded_keys, row + i); });
      }
      if (!bounded && key > 0) scale_rows(padded_queries);
      weigh(key, padded_keys, padded_queries);
    }
    prefetcher_.step();
    finish(task, first, queries);
  }

  // A share of the values of a block of keys and of the keys after it, for row i of kQueries.
  void prefetch(int64_t key, int64_t keys, int64_t i) const {
    const auto fetch = [i](const Pair* data, int64_t size) {
      const int64_t share = size / kQueries;
      for (int64_t at = 0; at < share; at += 16) __builtin_prefetch(data + i * share + at);
    };
    fetch(value_pairs_ + key / 2 * columns_, keys / 2 * columns_);
    if (key + 2 * keys <= keys_) fetch(key_panels_ + (key + keys) * depth_, keys * depth_);
  }

  // scores_ [queries, keys]
  void score(int64_t key, int64_t keys, int64_t queries) {
    for (int64_t panel = 0; panel < keys; panel += kPackedColumns) {
      const auto matrix = PanelMatrix<Pair>::packed(key_panels_ + (key + panel) * depth_, depth_);
      unit_.multiply_whole<false>(
          queries, kPackedColumns, depth_, {rows_, depth_}, matrix, scores_ + panel, score_stride_);
    }
  }

  // out_rows_ (+)= probabilities values
  void weigh(int64_t key, int64_t keys, int64_t queries) {
    const RowMajor<Pair> probabilities{reinterpret_cast<const Pair*>(scores_), score_stride_};
    const auto values = PanelMatrix<Pair>::row_major(value_pairs_ + key / 2 * columns_, columns_);
    if (key == 0) {
      unit_.multiply_whole<false>(queries, columns_, keys / 2, probabilities, values, out_rows_, columns_);
    } else {
      unit_.multiply_whole<true>(queries, columns_, keys / 2, probabilities, values, out_rows_, columns_);
    }
  }

  // To the origins that the last block has moved.
  void scale_rows(int64_t queries) {
    for (int64_t row = 0; row < queries; ++row) {
      scale_row(out_rows_ + row * columns_, softmax_[row / MatrixUnit::kRows].decay[row % MatrixUnit::kRows]);
    }
  }

  void scale_row(float* row, float factor) const {
    for (int64_t c = 0; c < columns_; c += MatrixUnit::kColumns) {
      (Vec<float>::loadu(row + c) * Vec<float>(factor)).store(row + c);
    }
  }

  // The output of a block of queries.
  void finish(const Task& task, int64_t first, int64_t count) {
    float* logsumexp = static_cast<float*>(args_.logsumexp);
    for (int64_t row = 0; row < count; row += MatrixUnit::kRows) {
      const SoftmaxRows& softmax = softmax_[row / MatrixUnit::kRows];
      const int64_t rows = std::min(MatrixUnit::kRows, count - row);
      const Vec<float> sum = Vec<float>::loadu(softmax.sum);
      if (logsumexp != nullptr) {
        const Vec<float> log2_total = Vec<float>::loadu(softmax.origin) + sum.log2();
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
  int64_t query_blocks_, score_stride_ = 0;
  Workspace<Pair> factors_;
  Pair* rows_;         // of the keys, then of a block of queries, [.., depth_]
  Pair* key_panels_;   // [keys_ / 32, depth_, 32]
  Pair* value_pairs_;  // [keys_ / 2, columns_]
  Workspace<float> sums_;
  float* scores_;    // [kQueries, score_stride_]
  float* out_rows_;  // [kQueries, columns_]
  SoftmaxRows softmax_[kQueries / MatrixUnit::kRows];
  MatrixUnit unit_;
  RowPrefetcher prefetcher_;  // of the next task's rows
  std::vector<int64_t> offsets_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

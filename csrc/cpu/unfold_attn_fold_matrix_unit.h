// Attention among the tokens of one pixel position, forward, in bfloat16 on the matrix unit.
//
// Queries are rows: scores are [queries, keys], whose probabilities are rows again, as the second product reads them.
// All operands are padded with zeros to whole tiles.
#pragma once

#include "cpu/matrix_unit.h"
#include "cpu/token_io.h"
#include "cpu/token_rows.h"
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

  // probabilities [16, padded keys] = 2**(factor * scores - origin) for the first `keys`, zeros behind them; both have
  // the same number of columns in a row. factor >= 0.
  void exponentiate(const float* scores, int64_t keys, int64_t padded, int64_t stride, float factor, c10::BFloat16* p) {
    const Vec<float> scale(factor);
    const Vec<float> old_maximum = Vec<float>::loadu(maximum);
    const Vec<float> new_maximum = larger(old_maximum, maxima(scores, keys, stride) * scale);
    const auto nothing = _mm512_cmp_ps_mask(
        new_maximum, _mm512_set1_ps(-std::numeric_limits<float>::infinity()), _CMP_EQ_OQ);
    // A row without a score above -inf yet must stay at sum 0 rather than turn NaN.
    const Vec<float> origin = _mm512_mask_blend_ps(nothing, new_maximum, _mm512_setzero_ps());
    alignas(64) float origins[kRows];
    origin.store(origins);
    new_maximum.store(maximum);
    const Vec<float> block_decay = exp2_score<float>(old_maximum - origin);
    block_decay.store(decay);
    Vec<float> sums[kRows];
    for (int64_t row = 0; row < kRows; ++row) {
      if (row % 4 == 0) MatrixUnit::keep_awake();
      sums[row] = exponentiate_row(scores + row * stride, keys, padded, scale, Vec<float>(origins[row]), p + row * stride);
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
      if (key < keys) result = _mm512_max_ps(_mm512_mask_loadu_ps(lowest, lanes_mask(keys - key), scores + key), result);
      maxima[row] = result;
    }
    return joined_lanes(maxima, [](__m512 a, __m512 b) { return _mm512_max_ps(a, b); });
  }

  static __mmask16 lanes_mask(int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }

  static Vec<float> exponentiate_row(
      const float* scores, int64_t keys, int64_t padded, const Vec<float>& scale, const Vec<float>& origin,
      c10::BFloat16* p) {
    constexpr int64_t kLanes = Vec<float>::size();
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

class AttentionForwardOnUnit {
  using Pair = Bfloat16Pair;

 public:
  explicit AttentionForwardOnUnit(const AttnForward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        depth_(round_up(dim_ / 2, MatrixUnit::kPairs)),
        columns_(round_up(dim_, MatrixUnit::kColumns)),
        keys_(round_up(tokens_, 2 * MatrixUnit::kPairs)),
        score_stride_(std::min(keys_, kKeyBlock) + kLine),
        factors_(factors_size()),
        rows_(factors_.take(std::max(keys_, kQueries) * depth_)),
        key_lanes_(factors_.take(depth_ * keys_)),
        value_pairs_(factors_.take(keys_ / 2 * columns_)),
        sums_(Workspace<float>::padded(kQueries * score_stride_) + kQueries * columns_),
        scores_(sums_.take(kQueries * score_stride_)),
        out_rows_(sums_.take(kQueries * columns_)),
        probabilities_memory_(kQueries * score_stride_),
        probabilities_(probabilities_memory_.take(0)),
        offsets_(2 * tokens_) {
    fill_token_offsets(args.shape.grid, args.qkv, qkv_offsets());
    fill_token_offsets(args.shape.grid, args.out, out_offsets());
  }

  void run(const Task& task, const Task& next) {
    load_keys(task);
    load_values(task);
    const int64_t blocks = (tokens_ + kQueries - 1) / kQueries;
    prefetcher_.start<c10::BFloat16>(
        {rows(next, 0), rows(next, 1), rows(next, 2), out_rows(next)}, prefetched_tokens(args_.shape), blocks);
    for (int64_t first = 0; first < tokens_; first += kQueries) {
      attend(task, first, std::min(kQueries, tokens_ - first));
      prefetcher_.step();
    }
  }

 private:
  static constexpr int64_t kQueries = 2 * MatrixUnit::kRows;
  static constexpr int64_t kKeyBlock = 256;  // keys whose scores with a block of queries stay in L1
  static constexpr int64_t kLine = 16;       // keeps rows out of the same few cache sets

  int64_t factors_size() const {
    const auto padded = Workspace<Pair>::padded;
    return padded(std::max(keys_, kQueries) * depth_) + padded(depth_ * keys_) + padded(keys_ / 2 * columns_);
  }
  int64_t* qkv_offsets() { return offsets_.data(); }
  int64_t* out_offsets() { return offsets_.data() + tokens_; }
  TokenRows<const c10::BFloat16> rows(const Task& task, int64_t part) {
    return task.rows<const c10::BFloat16>(args_.qkv, qkv_offsets(), part);
  }
  TokenRows<c10::BFloat16> out_rows(const Task& task) {
    return task.rows<c10::BFloat16>(args_.out, out_offsets(), 0);
  }

  void load_keys(const Task& task) {
    load_rows(rows(task, 1), 0, tokens_, rows_, depth_);
    std::fill(rows_ + tokens_ * depth_, rows_ + keys_ * depth_, Pair{});
    tokens_to_lanes(rows_, depth_, keys_, depth_, key_lanes_, keys_, score_sign<float>(args_.shape));
  }
  void load_values(const Task& task) {
    load_pairs_of_rows(rows(task, 2), tokens_, value_pairs_, columns_);
    std::fill(value_pairs_ + (tokens_ + 1) / 2 * columns_, value_pairs_ + keys_ / 2 * columns_, Pair{});
  }

  // Queries [first, first + count) against all keys.
  void attend(const Task& task, int64_t first, int64_t count) {
    load_rows(rows(task, 0), first, count, rows_, depth_);
    const int64_t queries = round_up(count, MatrixUnit::kRows);
    std::fill(rows_ + count * depth_, rows_ + queries * depth_, Pair{});
    for (SoftmaxRows& softmax : softmax_) softmax.begin();
    for (int64_t key = 0; key < tokens_; key += kKeyBlock) {
      const int64_t padded = std::min(kKeyBlock, keys_ - key);
      unit_.multiply_whole<false>(
          queries, padded, depth_, {rows_, depth_}, key_lanes_ + key, keys_, scores_, score_stride_);
      exponentiate(queries, std::min(kKeyBlock, tokens_ - key), padded);
      weigh(queries, key, padded);
    }
    finish(task, first, count);
  }

  void exponentiate(int64_t queries, int64_t keys, int64_t padded) {
    const float factor = score_factor<float>(args_.shape);
    for (int64_t row = 0; row < queries; row += MatrixUnit::kRows) {
      softmax_[row / MatrixUnit::kRows].exponentiate(
          scores_ + row * score_stride_, keys, padded, score_stride_, factor, probabilities_ + row * score_stride_);
    }
  }

  // out_rows_ = out_rows_ * decay + probabilities values
  void weigh(int64_t queries, int64_t key, int64_t padded) {
    const RowMajor<Pair> probabilities{factors(probabilities_), score_stride_ / 2};
    const Pair* values = value_pairs_ + key / 2 * columns_;
    if (key == 0) {
      return unit_.multiply_whole<false>(
          queries, columns_, padded / 2, probabilities, values, columns_, out_rows_, columns_);
    }
    for (int64_t row = 0; row < queries; ++row) {
      scale_row(out_rows_ + row * columns_, softmax_[row / MatrixUnit::kRows].decay[row % MatrixUnit::kRows]);
    }
    unit_.multiply_whole<true>(queries, columns_, padded / 2, probabilities, values, columns_, out_rows_, columns_);
  }

  void scale_row(float* row, float factor) const {
    for (int64_t c = 0; c < columns_; c += MatrixUnit::kColumns) {
      (Vec<float>::loadu(row + c) * Vec<float>(factor)).store(row + c);
    }
  }

  void finish(const Task& task, int64_t first, int64_t count) {
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
  int64_t score_stride_;
  Workspace<Pair> factors_;
  Pair* rows_;         // of the keys, then of a block of queries, [.., depth_]
  Pair* key_lanes_;    // [depth_, keys_]
  Pair* value_pairs_;  // [keys_ / 2, columns_]
  Workspace<float> sums_;
  float* scores_;    // [kQueries, score_stride_]
  float* out_rows_;  // [kQueries, columns_]
  Workspace<c10::BFloat16> probabilities_memory_;
  c10::BFloat16* probabilities_;  // [kQueries, score_stride_]
  SoftmaxRows softmax_[kQueries / MatrixUnit::kRows];
  MatrixUnit unit_;
  RowPrefetcher prefetcher_;  // of the next task's rows
  std::vector<int64_t> offsets_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

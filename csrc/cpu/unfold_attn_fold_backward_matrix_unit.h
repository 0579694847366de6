// Attention among the tokens of one pixel position, backward, in bfloat16 on the matrix unit.
//
// Keys are rows and queries are on the lanes: probabilities and score gradients [keys, queries] are rows, as the
// products for the gradients of keys and values read them, and pairs of rows, as that for the queries does. All
// operands are padded with zeros to whole tiles.
#pragma once

#include "cpu/matrix_unit.h"
#include "cpu/token_io.h"
#include "cpu/token_tiles.h"
#include "cpu/unfold_attn_fold_task.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

class AttentionBackwardOnUnit {
  using Pair = Bfloat16Pair;
  using Vector = Vec<float>;

 public:
  explicit AttentionBackwardOnUnit(const AttnBackward& args)
      : args_(args),
        tokens_(args.shape.grid.tokens()),
        dim_(args.shape.head_dim),
        depth_(round_up(dim_ / 2, MatrixUnit::kPairs)),
        columns_(round_up(dim_, MatrixUnit::kColumns)),
        padded_(round_up(tokens_, kPackedColumns)),
        pair_stride_(padded_ / 2 + kLine),
        direct_(tokens_ <= kBlock),
        factors_(factors_size()),
        rows_(factors_.take(padded_ * depth_)),
        keys_(factors_.take(padded_ * depth_)),
        values_(factors_.take(padded_ * depth_)),
        query_panels_(factors_.take(padded_ * depth_)),
        grad_out_panels_(factors_.take(padded_ * depth_)),
        query_pairs_(factors_.take(padded_ / 2 * columns_)),
        grad_out_pairs_(factors_.take(padded_ / 2 * columns_)),
        key_pairs_(factors_.take(padded_ / 2 * columns_)),
        key_lanes_(factors_.take(columns_ * pair_stride_)),
        probabilities_(factors_.take(kBlock * kRowPairs)),
        grad_scores_(factors_.take(kBlock * kRowPairs)),
        grad_score_pairs_(factors_.take(kBlock / 2 * kScoreStride)),
        sums_(sums_size()),
        scores_(sums_.take(kBlock * kScoreStride)),
        products_(sums_.take(kBlock * kScoreStride)),
        grad_keys_(sums_.take(kBlock * columns_)),
        grad_values_(sums_.take(kBlock * columns_)),
        grad_query_lanes_(sums_.take(columns_ * padded_)),
        grad_query_rows_(sums_.take(padded_ * columns_)),
        minus_logsumexp_(sums_.take(padded_)),
        minus_delta_(sums_.take(padded_)),
        offsets_(4 * tokens_) {
    const MapView* maps[] = {&args.qkv, &args.out, &args.grad_out, &args.grad_qkv};
    for (int map = 0; map < 4; ++map) fill_token_offsets(args.shape.grid, *maps[map], offsets(map));
  }

  void run(const Task& task, const Task& next) {
    load(task);
    start_prefetch(next);
    for (int64_t key = 0; key < tokens_; key += kBlock) {
      const int64_t keys = std::min(kBlock, tokens_ - key);
      for (int64_t query = 0; query < tokens_; query += kBlock) {
        const int64_t queries = std::min(kBlock, padded_ - query);
        multiply_scores(key, keys, query, queries);
        direct_ ? differentiate_direct(keys, queries) : differentiate(keys, query, queries);
        add_gradients(key, keys, query, queries);
        prefetcher_.step();
      }
      store(grad_rows(task, 1), key, keys, static_cast<float>(args_.shape.scale), grad_keys_);
      store(grad_rows(task, 2), key, keys, 1.0f, grad_values_);
    }
    lanes_to_tokens(grad_query_lanes_, padded_, padded_, columns_, grad_query_rows_, columns_);
    store(grad_rows(task, 0), 0, tokens_, static_cast<float>(args_.shape.scale), grad_query_rows_);
  }

 private:
  static constexpr int64_t kBlock = 64;  // keys, and queries, whose scores and their gradients stay in L1
  static constexpr int64_t kLine = 16;   // keeps rows out of the same few cache sets
  static constexpr int64_t kScoreStride = kBlock + kLine;
  static constexpr int64_t kRowPairs = kBlock / 2 + kLine;  // of a row of probabilities
  enum Map { kQkv, kOut, kGradOut, kGradQkv };

  int64_t factors_size() const {
    const auto padded = Workspace<Pair>::padded;
    return 5 * padded(padded_ * depth_) + 3 * padded(padded_ / 2 * columns_) + padded(columns_ * pair_stride_) +
        2 * padded(kBlock * kRowPairs) + padded(kBlock / 2 * kScoreStride);
  }
  int64_t sums_size() const {
    const auto padded = Workspace<float>::padded;
    return 2 * padded(kBlock * kScoreStride) + 2 * padded(kBlock * columns_) + 2 * padded(columns_ * padded_) +
        2 * padded(padded_);
  }
  int64_t* offsets(int map) { return offsets_.data() + map * tokens_; }
  TokenRows<const c10::BFloat16> qkv_rows(const Task& task, int64_t part) {
    return task.rows<const c10::BFloat16>(args_.qkv, offsets(kQkv), part);
  }
  TokenRows<const c10::BFloat16> grad_out_rows(const Task& task) {
    return task.rows<const c10::BFloat16>(args_.grad_out, offsets(kGradOut), 0);
  }
  TokenRows<c10::BFloat16> grad_rows(const Task& task, int64_t part) {
    return task.rows<c10::BFloat16>(args_.grad_qkv, offsets(kGradQkv), part);
  }

  void load(const Task& task) {
    load_rows(qkv_rows(task, 1), keys_);
    load_rows(qkv_rows(task, 2), values_);
    load_panels(qkv_rows(task, 0), query_panels_, score_sign<float>(args_.shape));
    load_panels(grad_out_rows(task), grad_out_panels_, 1.0f);
    load_pairs(qkv_rows(task, 0), query_pairs_);
    load_pairs(grad_out_rows(task), grad_out_pairs_);
    load_pairs(qkv_rows(task, 1), key_pairs_);
    tokens_to_lanes(key_pairs_, columns_, padded_ / 2, columns_, key_lanes_, pair_stride_, 1.0f);
    const float* logsumexp = static_cast<const float*>(args_.logsumexp) + task.stats_offset();
    for (int64_t n = 0; n < tokens_; ++n) minus_logsumexp_[n] = logsumexp[n] * static_cast<float>(-kLog2E);
    // Queries that there are not have probabilities 0.
    std::fill(minus_logsumexp_ + tokens_, minus_logsumexp_ + padded_, -std::numeric_limits<float>::infinity());
    if (!direct_) load_delta(task);
    std::fill_n(grad_query_lanes_, columns_ * padded_, 0.0f);
  }
  void load_rows(const TokenRows<const c10::BFloat16>& tokens, Pair* rows) {
    load_padded_rows(tokens, 0, tokens_, padded_, rows, depth_);
  }
  void load_panels(const TokenRows<const c10::BFloat16>& tokens, Pair* panels, float sign) {
    load_rows(tokens, rows_);
    rows_to_panels(rows_, padded_, depth_, sign, panels);
  }
  void load_pairs(const TokenRows<const c10::BFloat16>& tokens, Pair* pairs) {
    load_padded_pairs(tokens, tokens_, padded_, pairs, columns_);
  }

  // delta = out . grad_out of every token, where one block does not have all keys.
  void load_delta(const Task& task) {
    const auto out = task.rows<const c10::BFloat16>(args_.out, offsets(kOut), 0);
    const auto grad_out = grad_out_rows(task);
    for (int64_t n = 0; n < tokens_; ++n) {
      Vector sum(0);
      for (int64_t c = 0; c < dim_; c += Vector::size()) {
        const int64_t lanes = std::min<int64_t>(Vector::size(), dim_ - c);
        sum = at::vec::fmadd(load_as<float>(out[n] + c, lanes), load_as<float>(grad_out[n] + c, lanes), sum);
      }
      minus_delta_[n] = -horizontal_sum(sum);
    }
    std::fill(minus_delta_ + tokens_, minus_delta_ + padded_, 0.0f);
  }

  // The rows that the next task reads and writes.
  void start_prefetch(const Task& next) {
    const auto grad_out = grad_out_rows(next);
    const auto delta_source = direct_ ? grad_out : next.rows<const c10::BFloat16>(args_.out, offsets(kOut), 0);
    const int64_t blocks = (tokens_ + kBlock - 1) / kBlock;
    prefetcher_.start<c10::BFloat16>(
        {qkv_rows(next, 0), qkv_rows(next, 1), qkv_rows(next, 2), grad_out, delta_source, grad_rows(next, 0),
         grad_rows(next, 1), grad_rows(next, 2)},
        prefetched_tokens(args_.shape), blocks * blocks);
  }

  // scores = keys queries^T and products = values grad_out^T of a block.
  void multiply_scores(int64_t key, int64_t keys, int64_t query, int64_t queries) {
    const int64_t rows = round_up(keys, MatrixUnit::kRows);
    const auto query_panels = PanelMatrix<Pair>::packed(query_panels_ + query * depth_, depth_);
    const auto grad_out_panels = PanelMatrix<Pair>::packed(grad_out_panels_ + query * depth_, depth_);
    unit_.multiply_whole<false>(
        rows, queries, depth_, {keys_ + key * depth_, depth_}, query_panels, scores_, kScoreStride);
    unit_.multiply_whole<false>(
        rows, queries, depth_, {values_ + key * depth_, depth_}, grad_out_panels, products_, kScoreStride);
  }

  // Probabilities and gradients of the scores, but for the scale: probability * (grad_out . value - delta).
  void differentiate(int64_t keys, int64_t query, int64_t queries) {
    const Vector factor(score_factor<float>(args_.shape));
    for (int64_t lane = 0; lane < queries; lane += kPackedColumns) {
      const float *logsumexp = minus_logsumexp_ + query + lane, *delta = minus_delta_ + query + lane;
      const Vector shift[2] = {Vector::loadu(logsumexp), Vector::loadu(logsumexp + Vector::size())};
      const Vector minus_delta[2] = {Vector::loadu(delta), Vector::loadu(delta + Vector::size())};
      for_row_pairs(keys, lane, [&](int64_t at, int half, Vector& probability, Vector& grad) {
        probability = exp2_for_bfloat16(at::vec::fmadd(Vector::loadu(scores_ + at), factor, shift[half]));
        grad = probability * (Vector::loadu(products_ + at) + minus_delta[half]);
      });
    }
  }

  // The same where the block has all keys: delta is the mean of the very numbers that it is subtracted from, which
  // cancels where one probability is nearly 1. An output in 16 bits is too rough for that.
  void differentiate_direct(int64_t keys, int64_t queries) {
    const Vector factor(score_factor<float>(args_.shape));
    for (int64_t lane = 0; lane < queries; lane += Vector::size()) {
      const Vector shift = Vector::loadu(minus_logsumexp_ + lane);
      Vector sum(0), product(0);
      for (int64_t key = 0; key < keys; ++key) {
        float* score = scores_ + key * kScoreStride + lane;
        const Vector probability = exp2_score<float>(at::vec::fmadd(Vector::loadu(score), factor, shift));
        sum = sum + probability;
        product = at::vec::fmadd(probability, Vector::loadu(products_ + key * kScoreStride + lane), product);
        probability.store(score);
      }
      (Vector(0) - product / sum).store(minus_delta_ + lane);
    }
    std::fill(minus_delta_ + tokens_, minus_delta_ + padded_, 0.0f);
    for (int64_t lane = 0; lane < queries; lane += kPackedColumns) {
      const float* delta = minus_delta_ + lane;
      const Vector minus_delta[2] = {Vector::loadu(delta), Vector::loadu(delta + Vector::size())};
      for_row_pairs(keys, lane, [&](int64_t at, int half, Vector& probability, Vector& grad) {
        probability = Vector::loadu(scores_ + at);
        grad = probability * (Vector::loadu(products_ + at) + minus_delta[half]);
      });
    }
  }

  // Takes probabilities and gradients from compute(offset of a vector of scores, which of two, both) for all keys of a
  // block and 32 queries; zeros behind the keys.
  template <typename Compute>
  void for_row_pairs(int64_t keys, int64_t lane, const Compute compute) {
    const int64_t end = round_up(keys, 2 * MatrixUnit::kPairs);
    for (int64_t key = 0; key < end; key += 2) {
      if (key % 16 == 0) MatrixUnit::keep_awake();
      __m512i grads[2];
      for (int i = 0; i < 2; ++i) {
        Vector probability[2] = {Vector(0), Vector(0)}, grad[2] = {Vector(0), Vector(0)};
        for (int half = 0; half < 2 && key + i < keys; ++half) {
          compute((key + i) * kScoreStride + lane + half * Vector::size(), half, probability[half], grad[half]);
        }
        const int64_t row = (key + i) * kRowPairs + lane / 2;
        grads[i] = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(grad[1], grad[0]));
        _mm512_storeu_si512(grad_scores_ + row, grads[i]);
        _mm512_storeu_si512(
            probabilities_ + row, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(probability[1], probability[0])));
      }
      Pair* pairs = grad_score_pairs_ + key / 2 * kScoreStride + lane;
      _mm512_storeu_si512(pairs, interleaved<0>(grads[0], grads[1]));
      _mm512_storeu_si512(pairs + Vector::size(), interleaved<1>(grads[0], grads[1]));
    }
  }

  // Pairs (first[i], second[i]) of the lower or the upper half of 32 values.
  template <int kHalf>
  static __m512i interleaved(__m512i first, __m512i second) {
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i step = _mm512_mullo_epi32(lane, _mm512_set1_epi32(0x00010001));
    const __m512i index = _mm512_add_epi32(step, _mm512_set1_epi32(0x00200000 + kHalf * 0x00100010));
    return _mm512_permutex2var_epi16(first, index, second);
  }

  void add_gradients(int64_t key, int64_t keys, int64_t query, int64_t queries) {
    const int64_t rows = round_up(keys, MatrixUnit::kRows);
    const auto query_pairs = PanelMatrix<Pair>::row_major(query_pairs_ + query / 2 * columns_, columns_);
    const auto grad_out_pairs = PanelMatrix<Pair>::row_major(grad_out_pairs_ + query / 2 * columns_, columns_);
    add_rows(query == 0, rows, queries / 2, {grad_scores_, kRowPairs}, query_pairs, grad_keys_);
    add_rows(query == 0, rows, queries / 2, {probabilities_, kRowPairs}, grad_out_pairs, grad_values_);
    // grad_query^T [head_dim, queries] += keys^T [head_dim, keys] grad_scores [keys, queries]
    const RowMajor<Pair> key_lanes{key_lanes_ + key / 2, pair_stride_};
    const auto pairs = PanelMatrix<Pair>::row_major(grad_score_pairs_, kScoreStride);
    unit_.multiply_whole<true>(
        columns_, queries, round_up(keys, 2 * MatrixUnit::kPairs) / 2, key_lanes, pairs, grad_query_lanes_ + query,
        padded_);
  }

  // sums [keys, head_dim] (+)= weights [keys, queries] pairs [queries, head_dim]
  void add_rows(
      bool first, int64_t rows, int64_t depth, const RowMajor<Pair>& weights, const PanelMatrix<Pair>& pairs,
      float* sums) {
    if (first) return unit_.multiply_whole<false>(rows, columns_, depth, weights, pairs, sums, columns_);
    unit_.multiply_whole<true>(rows, columns_, depth, weights, pairs, sums, columns_);
  }

  void store(const TokenRows<c10::BFloat16>& tokens, int64_t first, int64_t count, float factor, float* rows) {
    for (int64_t i = 0; i < count * columns_; i += Vector::size()) {
      (Vector::loadu(rows + i) * Vector(factor)).store(rows + i);
    }
    store_rows(tokens, first, count, rows, columns_);
  }

  const AttnBackward& args_;
  int64_t tokens_, dim_;
  int64_t depth_;        // pairs of channels of a padded head
  int64_t columns_;      // channels of one
  int64_t padded_;       // tokens
  int64_t pair_stride_;  // of pairs of tokens
  bool direct_;          // a block has all tokens
  Workspace<Pair> factors_;
  Pair* rows_;                                        // of a map, [padded, depth]
  Pair *keys_, *values_;                              // [padded, depth]
  Pair *query_panels_, *grad_out_panels_;             // [padded / 32, depth, 32]
  Pair *query_pairs_, *grad_out_pairs_, *key_pairs_;  // [padded / 2, columns]
  Pair* key_lanes_;                                   // [columns, padded / 2]
  Pair *probabilities_, *grad_scores_;                // [keys, queries / 2] of a block
  Pair* grad_score_pairs_;                            // [keys / 2, queries]
  Workspace<float> sums_;
  float *scores_, *products_;              // [keys, queries] of a block
  float *grad_keys_, *grad_values_;        // [keys, columns] of a block of keys
  float* grad_query_lanes_;                // [columns, padded]
  float* grad_query_rows_;                 // [padded, columns]
  float *minus_logsumexp_, *minus_delta_;  // [padded]
  MatrixUnit unit_;
  RowPrefetcher prefetcher_;
  std::vector<int64_t> offsets_;
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Rows of tokens as operands of the matrix unit, with zeros behind the tokens up to whole tiles.
#pragma once

#include "cpu/token_rows.h"

#include <algorithm>

namespace mobilevit::cpu::CPU_CAPABILITY {

// rows [padded, depth] = the tokens [first, first + count), in pairs of channels.
inline void load_padded_rows(
    const TokenRows<const c10::BFloat16>& tokens, int64_t first, int64_t count, int64_t padded, Bfloat16Pair* rows,
    int64_t depth) {
  load_rows(tokens, first, count, rows, depth);
  std::fill(rows + count * depth, rows + padded * depth, Bfloat16Pair{});
}

// pairs [padded / 2, columns] = all `count` tokens, in pairs of tokens.
inline void load_padded_pairs(
    const TokenRows<const c10::BFloat16>& tokens, int64_t count, int64_t padded, Bfloat16Pair* pairs, int64_t columns) {
  load_pairs_of_rows(tokens, count, pairs, columns);
  std::fill(pairs + (count + 1) / 2 * columns, pairs + padded / 2 * columns, Bfloat16Pair{});
}

// panels [padded / 32, depth, 32] = sign * rows^T, for rows [padded, depth].
inline void rows_to_panels(const Bfloat16Pair* rows, int64_t padded, int64_t depth, float sign, Bfloat16Pair* panels) {
  for (int64_t first = 0; first < padded; first += kPackedColumns) {
    tokens_to_lanes(rows + first * depth, depth, kPackedColumns, depth, panels + first * depth, kPackedColumns, sign);
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

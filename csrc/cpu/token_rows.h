// Rows of tokens between the map and a thread's memory, and between rows and lanes.
#pragma once

#include "cpu/simd.h"
#include "cpu/token_grid.h"
#include "cpu/unfold_attn_fold_tile.h"

#include <algorithm>
#include <initializer_list>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {

// offsets[n] = elements from the first token of a group to its token n: the same for every group of a map.
inline void fill_token_offsets(const TokenGrid& grid, const MapView& map, int64_t* offsets) {
  TokenCursor token(grid, map, 0, 0, 0);
  for (int64_t n = 0; n < grid.tokens(); ++n, token.next()) offsets[n] = token.offset();
}

// The channels of one head (or of all) of the tokens of one group.
template <typename T>
struct TokenRows {
  T* data;
  const int64_t* offsets;
  int64_t width;

  T* operator[](int64_t token) const { return data + offsets[token]; }
  operator TokenRows<const T>() const { return {data, offsets, width}; }
};

// Calls function(std::integral_constant<int, vectors>, whole, last): a row of `width` is `whole` elements, then
// 1 to 4 vectors, of which the last one has `last` elements.
template <typename A, typename Function>
inline void with_row_vectors(int64_t width, const Function& function) {
  const int64_t vectors = vectors_of<A>(width), counted = (vectors - 1) % 4 + 1;
  const int64_t whole = (vectors - counted) * kLanes<A>, last = width - (vectors - 1) * kLanes<A>;
  with_count<4>(counted, [&](auto count) { function(count, whole, last); });
}

// rows[i, 0 : width] = token first + i for i < count, ascending. Whole vectors are written: what lies behind a row's
// width is zero up to the next row, and up to a vector's length behind the last one.
template <typename T, typename A>
inline void load_rows(const TokenRows<const T>& tokens, int64_t first, int64_t count, A* rows, int64_t row_stride) {
  with_row_vectors<A>(tokens.width, [&](auto vectors, int64_t whole, int64_t last) {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t i = 0; i < count; ++i) {
      const T* token = tokens[first + i];
      A* row = rows + i * row_stride;
      for (int64_t c = 0; c < whole; c += kLanes<A>) load_as<A>(token + c).store(row + c);
      token += whole, row += whole;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors - 1; ++v) {
        load_as<A>(token + v * kLanes<A>).store(row + v * kLanes<A>);
      }
      constexpr int64_t kLast = (kVectors - 1) * kLanes<A>;
      load_as<A>(token + kLast, last).store(row + kLast);
    }
  });
}

// The rows of the factors of products over tokens: here the tokens themselves.
template <typename T, typename A>
inline void load_pairs_of_rows(const TokenRows<const T>& tokens, int64_t count, A* rows, int64_t row_stride) {
  load_rows(tokens, 0, count, rows, row_stride);
}

#if defined(CPU_CAPABILITY_AVX512_BF16)
// rows[i, 0 : width / 2] = pairs of channels of token first + i; the width is even. As above else.
inline void load_rows(
    const TokenRows<const c10::BFloat16>& tokens, int64_t first, int64_t count, Bfloat16Pair* rows,
    int64_t row_stride) {
  const int64_t width = tokens.width / 2;
  for (int64_t i = 0; i < count; ++i) {
    const Bfloat16Pair* token = factors(tokens[first + i]);
    for (int64_t c = 0; c < width; c += kLanes<float>) {
      const __m512i vector =
          Operands<Bfloat16Pair>::load(token + c, static_cast<int>(std::min(width - c, kLanes<float>)));
      _mm512_storeu_si512(rows + i * row_stride + c, vector);
    }
  }
}

// rows[i, 0 : width] = pairs of tokens 2i and 2i + 1, the last one with zeros where there is one token left.
inline void load_pairs_of_rows(
    const TokenRows<const c10::BFloat16>& tokens, int64_t count, Bfloat16Pair* rows, int64_t row_stride) {
  const std::vector<c10::BFloat16> zeros(count % 2 == 0 ? 0 : tokens.width);
  for (int64_t i = 0; i < count; i += 2) {
    const c10::BFloat16 *first = tokens[i], *second = i + 1 < count ? tokens[i + 1] : zeros.data();
    for (int64_t c = 0; c < tokens.width; c += kLanes<float>) {
      store_pairs(first + c, second + c, tokens.width - c, rows + i / 2 * row_stride + c);
    }
  }
}
#endif

// Brings rows into the second-level cache, a few with every step of other work: all at once they would queue for the
// few misses that a core can have open.
class RowPrefetcher {
 public:
  // The rows of `tokens` tokens of every part will have been asked for after this many steps.
  template <typename T>
  void start(std::initializer_list<TokenRows<const T>> parts, int64_t tokens, int64_t steps) {
    parts_ = 0;
    for (const TokenRows<const T>& part : parts) {
      data_[parts_] = reinterpret_cast<const char*>(part.data);
      offsets_[parts_++] = part.offsets;
      row_bytes_ = part.width * sizeof(T);
    }
    element_size_ = sizeof(T);
    tokens_ = tokens;
    per_step_ = (tokens + steps - 1) / steps;
    next_ = 0;
  }
  void step() {
    const int64_t end = std::min(tokens_, next_ + per_step_);
    for (; next_ < end; ++next_) {
      for (int part = 0; part < parts_; ++part) {
        const char* row = data_[part] + offsets_[part][next_] * element_size_;
        for (int64_t i = 0; i < row_bytes_; i += kLineBytes) __builtin_prefetch(row + i, 0, 2);
        __builtin_prefetch(row + row_bytes_ - 1, 0, 2);
      }
    }
  }

 private:
  static constexpr int kMaxParts = 8;
  static constexpr int64_t kLineBytes = 64;

  const char* data_[kMaxParts];
  const int64_t* offsets_[kMaxParts];
  int parts_;
  int64_t row_bytes_, element_size_, tokens_, per_step_, next_;
};

template <typename T, typename A>
inline void store_rows(const TokenRows<T>& tokens, int64_t first, int64_t count, const A* rows, int64_t row_stride) {
  with_row_vectors<A>(tokens.width, [&](auto vectors, int64_t whole, int64_t last) {
    constexpr int kVectors = decltype(vectors)::value;
    for (int64_t i = 0; i < count; ++i) {
      T* token = tokens[first + i];
      const A* row = rows + i * row_stride;
      for (int64_t c = 0; c < whole; c += kLanes<A>) store_as(Vec<A>::loadu(row + c), token + c);
      token += whole, row += whole;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors - 1; ++v) {
        store_as(Vec<A>::loadu(row + v * kLanes<A>), token + v * kLanes<A>);
      }
      constexpr int64_t kLast = (kVectors - 1) * kLanes<A>;
      store_as(Vec<A>::loadu(row + kLast), token + kLast, last);
    }
  });
}

// Rows are this far apart at least, so that groups of four channels can be transposed whole.
constexpr int64_t kChannelGroup = 4;

#if defined(CPU_CAPABILITY_AVX512)
// Four consecutive channels of rows 0, 4, 8 and 12.
using Quads = __m512;

inline Quads load_quads(const float* rows, int64_t row_stride) {
  Quads x = _mm512_castps128_ps512(_mm_loadu_ps(rows));
  x = _mm512_mask_broadcast_f32x4(x, 0x00f0, _mm_loadu_ps(rows + 4 * row_stride));
  x = _mm512_mask_broadcast_f32x4(x, 0x0f00, _mm_loadu_ps(rows + 8 * row_stride));
  return _mm512_mask_broadcast_f32x4(x, 0xf000, _mm_loadu_ps(rows + 12 * row_stride));
}

inline void store_quads(const Quads& x, float* rows, int64_t row_stride) {
  _mm_storeu_ps(rows, _mm512_castps512_ps128(x));
  _mm_storeu_ps(rows + 4 * row_stride, _mm512_extractf32x4_ps(x, 1));
  _mm_storeu_ps(rows + 8 * row_stride, _mm512_extractf32x4_ps(x, 2));
  _mm_storeu_ps(rows + 12 * row_stride, _mm512_extractf32x4_ps(x, 3));
}

// Transposes the 4 x 4 blocks in the 128-bit lanes of four vectors.
inline void transpose_lanes(Quads (&x)[4]) {
  const Quads low01 = _mm512_unpacklo_ps(x[0], x[1]), high01 = _mm512_unpackhi_ps(x[0], x[1]);
  const Quads low23 = _mm512_unpacklo_ps(x[2], x[3]), high23 = _mm512_unpackhi_ps(x[2], x[3]);
  x[0] = _mm512_shuffle_ps(low01, low23, 0x44);
  x[1] = _mm512_shuffle_ps(low01, low23, 0xee);
  x[2] = _mm512_shuffle_ps(high01, high23, 0x44);
  x[3] = _mm512_shuffle_ps(high01, high23, 0xee);
}
#elif defined(CPU_CAPABILITY_AVX2)
// Four consecutive channels of rows 0 and 4.
using Quads = __m256;

inline Quads load_quads(const float* rows, int64_t row_stride) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows)), _mm_loadu_ps(rows + 4 * row_stride), 1);
}

inline void store_quads(const Quads& x, float* rows, int64_t row_stride) {
  _mm_storeu_ps(rows, _mm256_castps256_ps128(x));
  _mm_storeu_ps(rows + 4 * row_stride, _mm256_extractf128_ps(x, 1));
}

// Transposes the 4 x 4 blocks in the 128-bit lanes of four vectors.
inline void transpose_lanes(Quads (&x)[4]) {
  const Quads low01 = _mm256_unpacklo_ps(x[0], x[1]), high01 = _mm256_unpackhi_ps(x[0], x[1]);
  const Quads low23 = _mm256_unpacklo_ps(x[2], x[3]), high23 = _mm256_unpackhi_ps(x[2], x[3]);
  x[0] = _mm256_shuffle_ps(low01, low23, 0x44);
  x[1] = _mm256_shuffle_ps(low01, low23, 0xee);
  x[2] = _mm256_shuffle_ps(high01, high23, 0x44);
  x[3] = _mm256_shuffle_ps(high01, high23, 0xee);
}
#endif

#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
// lanes[c, i] = change(rows[i, c]) for a vector of rows and the channels [c, c + 4).
template <typename Change>
inline void four_channels_to_lanes(
    const float* rows, int64_t row_stride, float* lanes, int64_t lane_stride, const Change& change) {
  Quads x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] = load_quads(rows + i * row_stride, row_stride);
  transpose_lanes(x);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) Vec<float>(change(x[i])).store(lanes + i * lane_stride);
}

// The same for all rows and channels.
template <typename Change>
inline void channels_to_lanes(
    const float* rows, int64_t row_stride, int64_t count, int64_t width, float* lanes, int64_t lane_stride,
    const Change& change) {
  for (int64_t i = 0; i < count; i += kLanes<float>) {
    for (int64_t c = 0; c < width; c += kChannelGroup) {
      four_channels_to_lanes(rows + i * row_stride + c, row_stride, lanes + c * lane_stride + i, lane_stride, change);
    }
  }
}

// rows[i, c] = lanes[c, i] for a vector of rows and the channels [c, c + 4).
inline void four_channels_to_rows(const float* lanes, int64_t lane_stride, float* rows, int64_t row_stride) {
  Quads x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) x[i] = Vec<float>::loadu(lanes + i * lane_stride);
  transpose_lanes(x);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) store_quads(x[i], rows + i * row_stride, row_stride);
}
#endif

// lanes[c, i] = rows[i, c] * factor for i < count, a multiple of the vector length, and all channels. Rows are readable
// and lanes writable for whole groups of four channels.
template <typename A>
inline void tokens_to_lanes(
    const A* rows, int64_t row_stride, int64_t count, int64_t width, A* lanes, int64_t lane_stride, A factor) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    channels_to_lanes(
        rows, row_stride, count, width, lanes, lane_stride,
        [scale = Vec<float>(factor)](const Vec<float>& values) { return values * scale; });
    return;
  }
#endif
  transpose(rows, row_stride, lanes, lane_stride, count, width);
  for (int64_t c = 0; c < width; ++c) {
    A* row = lanes + c * lane_stride;
    for (int64_t i = 0; i < count; i += kLanes<A>) (Vec<A>::loadu(row + i) * Vec<A>(factor)).store(row + i);
  }
}

#if defined(CPU_CAPABILITY_AVX512_BF16)
// The same for pairs; the factor is 1 or -1.
inline void tokens_to_lanes(
    const Bfloat16Pair* rows, int64_t row_stride, int64_t count, int64_t width, Bfloat16Pair* lanes,
    int64_t lane_stride, float factor) {
  const __m512i signs = _mm512_set1_epi32(factor < 0 ? static_cast<int>(0x80008000u) : 0);
  channels_to_lanes(
      reinterpret_cast<const float*>(rows), row_stride, count, width, reinterpret_cast<float*>(lanes), lane_stride,
      [signs](const __m512& pairs) {
        return _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(pairs), signs));
      });
}
#endif

// The reverse, without a factor.
template <typename A>
inline void lanes_to_tokens(
    const A* lanes, int64_t lane_stride, int64_t count, int64_t width, A* rows, int64_t row_stride) {
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float>) {
    for (int64_t i = 0; i < count; i += kLanes<A>) {
      for (int64_t c = 0; c < width; c += kChannelGroup) {
        four_channels_to_rows(lanes + c * lane_stride + i, lane_stride, rows + i * row_stride + c, row_stride);
      }
    }
    return;
  }
#endif
  transpose(lanes, lane_stride, rows, row_stride, width, count);
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// Products of pairs of bfloat16 on the matrix unit (AMX), in tiles of 16 x 16 sums, for one thread.
#pragma once

#include "cpu/gemm.h"

#include <algorithm>
#include <type_traits>

namespace mobilevit::cpu::CPU_CAPABILITY {

class MatrixUnit {
 public:
  MatrixUnit() { ++tiles_.users; }
  MatrixUnit(const MatrixUnit&) = delete;
  MatrixUnit& operator=(const MatrixUnit&) = delete;
  // The tiles are in use until the last object of the thread ends.
  ~MatrixUnit() {
    if (--tiles_.users > 0 || tiles_.rows == 0) return;
    _tile_release();
    tiles_.rows = 0;
  }

  // The matrix unit takes a quarter of a microsecond to wake up when it had nothing to do for about 0.4. Work between
  // two products calls this now and then: a product that nobody reads. Amid work that fills the vector units it costs
  // 80 cycles.
  static void keep_awake() {
    if (tiles_.rows > 0) _tile_dpbf16ps(0, 4, 6);
  }

  // Rows, columns and pairs of a whole tile.
  static constexpr int64_t kRows = 16, kColumns = 16, kPairs = 16;

  // c[rows, columns] (+)= a[rows, depth] b[depth, columns] in whole tiles; depth in pairs.
  template <bool kAccumulate>
  void multiply_whole(
      int64_t rows, int64_t columns, int64_t depth, const RowMajor<Bfloat16Pair>& a, const PanelMatrix<Bfloat16Pair>& b,
      float* c, int64_t c_stride) {
    configure(kRows, kPairs);
    finish_stores();
    for (int64_t column = 0; column < columns; column += 2 * kColumns) {
      for (int64_t row = 0; row < rows; row += 2 * kRows) {
        const Bfloat16Pair* upper = a.data + row * a.stride;
        const Source source{upper, upper + kRows * a.stride, a.stride, b.at(column), b.row_stride};
        float* target = c + row * c_stride + column;
        with_tiles(rows - row, columns - column, [&](auto tall, auto wide) {
          constexpr int kTall = decltype(tall)::value, kWide = decltype(wide)::value;
          if constexpr (kAccumulate) {
            load<kTall, kWide>(target, c_stride);
          } else {
            zero<kTall, kWide>();
          }
          add_products<kTall, kWide>(source, depth / kPairs, kPairs);
          store<kTall, kWide>(target, c_stride);
        });
      }
    }
  }

  // All rows against the columns [begin, end); begin is a multiple of kPackedColumns.
  template <bool kPadded, typename C, typename Depth, typename Epilogue>
  void multiply(
      const Product<RowMajor<Bfloat16Pair>, PanelMatrix<Bfloat16Pair, kPadded>, C, Depth>& product, int64_t rows,
      int64_t begin, int64_t end, const Epilogue& epilogue) {
    const int64_t depth = product.pieces.count == 1 ? padded_depth<Bfloat16Pair>(product.depth) : product.depth;
    const int64_t steps = steps_of(depth), tile_rows = std::min(rows, kRows);
    configure(static_cast<int>(tile_rows), static_cast<int>(depth / steps));
    finish_stores();
    // The vector units finish a block while the matrix unit multiplies the next one.
    Block blocks[2];
    int64_t count = 0;
    for (int64_t column = begin; column < end; column += kPackedColumns) {
      const int64_t columns = std::min(kPackedColumns, end - column);
      for (int64_t row = 0; row < rows; row += kBlockRows, ++count) {
        const int64_t last = rows - tile_rows;
        Block& block = blocks[count % 2];
        block = {
            row,
            std::min(kBlockRows, rows - row),
            column,
            columns,
            {std::min(row, last), std::min(row + kRows, last)},
            sums_[count % 2]};
        multiply_block(product, steps, depth / steps, block);
        if (count > 0) finish(product, blocks[(count - 1) % 2], epilogue);
      }
    }
    if (count > 0) finish(product, blocks[(count - 1) % 2], epilogue);
  }

 private:
  static constexpr int64_t kBlockRows = 2 * kRows;

  // Rows [row, row + rows) and columns [column, column + columns) of a product, in up to 2 x 2 tiles. Tiles begin early
  // enough to end with the last row of the product.
  struct Block {
    int64_t row, rows, column, columns;
    int64_t first_row[2];  // of the upper and the lower tiles
    float* sums;           // [kBlockRows, kPackedColumns]
  };

  // What _tile_loadconfig reads.
  struct alignas(64) Configuration {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  };

  // Tiles read as many pairs at a step as divide the depth of a piece: one shape of tiles serves a whole product.
  static int64_t steps_of(int64_t depth) {
    int64_t steps = (depth + kPairs - 1) / kPairs;
    while (depth % steps != 0) ++steps;
    return steps;
  }

  // For the compiler, which does not know that tiles are loaded from memory: what was stored so far is in memory.
  static void finish_stores() { __asm__ volatile("" ::: "memory"); }

  // Tiles 0 to 3: sums, 4 and 5: rows of A, 6 and 7: pairs of rows of B.
  void configure(int rows, int pairs) {
    if (rows == tiles_.rows && pairs == tiles_.pairs) return;
    tiles_.rows = rows, tiles_.pairs = pairs;
    Configuration configuration;
    for (int tile = 0; tile < 8; ++tile) {
      configuration.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : pairs);
      configuration.row_bytes[tile] = static_cast<uint16_t>(4 * (tile == 4 || tile == 5 ? pairs : kColumns));
    }
    finish_stores();
    _tile_loadconfig(&configuration);
  }

  // Calls function with the number of rows and columns of tiles, 1 or 2, as std::integral_constant.
  template <typename Function>
  static void with_tiles(int64_t rows, int64_t columns, const Function& function) {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (columns > kColumns) {
      rows > kRows ? function(Two(), Two()) : function(One(), Two());
    } else {
      rows > kRows ? function(Two(), One()) : function(One(), One());
    }
  }

  template <typename Factors>
  static void multiply_block(const Factors& product, int64_t steps, int64_t pairs, const Block& block) {
    with_tiles(block.rows, block.columns, [&](auto tall, auto wide) {
      constexpr int kTall = decltype(tall)::value, kWide = decltype(wide)::value;
      zero<kTall, kWide>();
      const int64_t stride = product.a.stride;
      const Bfloat16Pair* b = product.b.at(block.column);
      for (int64_t piece = 0; piece < product.pieces.count; ++piece) {
        const Bfloat16Pair* a = product.a.data + product.pieces.offset(piece);
        const Source source{
            a + block.first_row[0] * stride, a + block.first_row[1] * stride, stride, b, product.b.row_stride};
        add_products<kTall, kWide>(source, steps, pairs);
        b += product.depth * product.b.row_stride;
      }
      store<kTall, kWide>(block.sums, kPackedColumns);
    });
  }

  // The first rows of the upper and lower tiles of A, and of B; strides in pairs.
  struct Source {
    const Bfloat16Pair *upper, *lower;
    int64_t a_stride;
    const Bfloat16Pair* b;
    int64_t b_stride;
  };

  template <int kTall, int kWide>
  static void add_products(Source source, int64_t steps, int64_t pairs) {
    const int64_t a_stride = 4 * source.a_stride, b_stride = 4 * source.b_stride;
    for (int64_t step = 0; step < steps; ++step) {
      _tile_loadd(6, source.b, b_stride);
      _tile_loadd(4, source.upper, a_stride);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kWide == 2) {
        _tile_loadd(7, source.b + kColumns, b_stride);
        _tile_dpbf16ps(1, 4, 7);
      }
      if constexpr (kTall == 2) {
        _tile_loadd(5, source.lower, a_stride);
        _tile_dpbf16ps(2, 5, 6);
        if constexpr (kWide == 2) _tile_dpbf16ps(3, 5, 7);
      }
      source.upper += pairs, source.lower += pairs, source.b += pairs * source.b_stride;
    }
  }

  template <int kTall, int kWide>
  static void zero() {
    _tile_zero(0);
    if constexpr (kWide == 2) _tile_zero(1);
    if constexpr (kTall == 2) _tile_zero(2);
    if constexpr (kTall == 2 && kWide == 2) _tile_zero(3);
  }

  template <int kTall, int kWide>
  static void load(const float* c, int64_t c_stride) {
    _tile_loadd(0, c, 4 * c_stride);
    if constexpr (kWide == 2) _tile_loadd(1, c + kColumns, 4 * c_stride);
    if constexpr (kTall == 2) _tile_loadd(2, c + kRows * c_stride, 4 * c_stride);
    if constexpr (kTall == 2 && kWide == 2) _tile_loadd(3, c + kRows * c_stride + kColumns, 4 * c_stride);
  }

  template <int kTall, int kWide>
  static void store(float* c, int64_t c_stride) {
    _tile_stored(0, c, 4 * c_stride);
    if constexpr (kWide == 2) _tile_stored(1, c + kColumns, 4 * c_stride);
    if constexpr (kTall == 2) _tile_stored(2, c + kRows * c_stride, 4 * c_stride);
    if constexpr (kTall == 2 && kWide == 2) _tile_stored(3, c + kRows * c_stride + kColumns, 4 * c_stride);
  }

  // Arguments by value: the compiler takes what is stored for any object that it has the address of.
  template <typename Factors, typename Epilogue>
  static C10_ALWAYS_INLINE void finish(const Factors product, const Block block, const Epilogue epilogue) {
    for (int64_t tile = 0, i = 0; i < block.rows; ++tile) {
      const float* sums = block.sums + (tile * kRows + block.row + i - block.first_row[tile]) * kPackedColumns;
      const int64_t end = std::min(i + kRows, block.rows);
      auto* c = product.c + (block.row + i) * product.c_stride + block.column;
      if (block.columns == kPackedColumns) {
        for (; i < end; ++i, sums += kPackedColumns, c += product.c_stride) {
          finish_vector(sums, block.row + i, block.column, kColumns, c, epilogue);
          finish_vector(sums + kColumns, block.row + i, block.column + kColumns, kColumns, c + kColumns, epilogue);
        }
      }
      for (; i < end; ++i, sums += kPackedColumns, c += product.c_stride) {
        for (int64_t j = 0; j < block.columns; j += kColumns) {
          finish_vector(
              sums + j, block.row + i, block.column + j, std::min(kColumns, block.columns - j), c + j, epilogue);
        }
      }
    }
  }

  template <typename C, typename Epilogue>
  static C10_ALWAYS_INLINE void finish_vector(
      const float* sums, int64_t row, int64_t column, int64_t lanes, C* c, const Epilogue& epilogue) {
    Vec<float> value = Vec<float>::loadu(sums);
    if constexpr (Epilogue::kAccumulate) value = load_as<float>(c, lanes) + value;
    store_as(epilogue.template operator()<float>(row, column, value), c, lanes);
  }

  // How the tiles of this thread are configured; rows is 0 where they are not.
  struct Tiles {
    int rows, pairs, users;
  };
  static inline thread_local Tiles tiles_;

  alignas(64) float sums_[2][kBlockRows * kPackedColumns];
};

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// A map as a matrix of tokens: row i is pixel i in memory order, whatever group it belongs to.
#pragma once

#include "cpu/linear.h"
#include "cpu/separable_attn_tile.h"

namespace mobilevit::cpu::CPU_CAPABILITY {

// Walks the pixels of a map.
class PixelCursor {
 public:
  PixelCursor(const TokenGrid& grid, int64_t pixel)
      : grid_(grid),
        b_(pixel / (grid.height * grid.width)),
        h_(pixel / grid.width % grid.height),
        w_(pixel % grid.width) {}

  int64_t offset(const MapView& map) const {
    return b_ * map.batch_stride + h_ * map.row_stride + w_ * map.column_stride;
  }
  // Pixels up to the end of this row of the map, no more than `limit`.
  int64_t rest_of_row(int64_t limit) const { return std::min(grid_.width - w_, limit); }
  // Group of the pixel `i` further on in this row of the map.
  int64_t first_group() const { return b_ * grid_.positions() + h_ % grid_.patch_h * grid_.patch_w; }
  int64_t column() const { return w_; }

  void advance(int64_t pixels) {
    w_ += pixels;
    if (w_ < grid_.width) return;
    w_ = 0;
    if (++h_ < grid_.height) return;
    h_ = 0;
    ++b_;
  }

 private:
  const TokenGrid& grid_;
  int64_t b_, h_, w_;
};

// W: type of the rows.
template <typename T, typename W>
class PixelRows {
 public:
  PixelRows(const SeparableShape& shape, const MapView& map) : shape_(shape), map_(map) {
    const TokenGrid& grid = shape.grid;
    stride_ = grid.width > 1 ? map.column_stride : grid.height > 1 ? map.row_stride : map.batch_stride;
    in_place_ = std::is_same_v<T, W> && stride_ == paired_inputs<W>(stride_) &&
        (grid.height == 1 || map.row_stride == grid.width * stride_) &&
        (grid.batch == 1 || map.batch_stride == grid.height * grid.width * stride_);
  }

  // Whether a product can write the rows as they lie in the map, at stride().
  bool in_place() const { return in_place_; }
  int64_t stride() const { return stride_; }
  W* row(int64_t pixel) const { return static_cast<W*>(map_.data) + pixel * stride_; }

  // Rows [first, first + count): of the map, or copied to a buffer of row stride `stride`.
  RowMajor<W> read(int64_t first, int64_t count, W* buffer, int64_t stride) const {
    if (in_place_ && reads_unpadded<W>(shape_.channels)) return {row(first), stride_};
    for_each_row(first, count, [&](int64_t i, T* row) { convert_row(row, buffer + i * stride, shape_.channels); });
    return {buffer, stride};
  }
  // The `width` channels from `channel` on of rows [first, first + count), from a buffer of these channels.
  void write(int64_t first, int64_t count, int64_t channel, int64_t width, const W* buffer, int64_t stride) const {
    for_each_row(first, count, [&](int64_t i, T* row) { convert_row(buffer + i * stride, row + channel, width); });
  }

 private:
  template <typename Function>
  void for_each_row(int64_t first, int64_t count, const Function& function) const {
    PixelCursor pixel(shape_.grid, first);
    for (int64_t i = 0; i < count; ++i, pixel.advance(1)) {
      function(i, static_cast<T*>(map_.data) + pixel.offset(map_));
    }
  }

  const SeparableShape& shape_;
  const MapView& map_;
  int64_t stride_;
  bool in_place_;
};

// vectors[i] = the row of a [groups, stride] matrix that belongs to pixel first + i.
template <typename A>
void rows_of_groups(
    const TokenGrid& grid, int64_t first, int64_t count, const A* matrix, int64_t stride, const A** vectors) {
  PixelCursor pixel(grid, first);
  for (int64_t i = 0; i < count;) {
    const A* patch_row = matrix + pixel.first_group() * stride;
    const int64_t end = i + pixel.rest_of_row(count - i);
    int64_t column = pixel.column() % grid.patch_w;
    pixel.advance(end - i);
    for (; i < end; ++i) {
      vectors[i] = patch_row + column * stride;
      if (++column == grid.patch_w) column = 0;
    }
  }
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

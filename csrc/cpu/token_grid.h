// Geometry of a map of tokens: which pixel is token n of group p. No vector code, shared by all instruction sets.
#pragma once

#include <cstdint>

namespace mobilevit::cpu {

struct TokenGrid {
  int64_t batch, height, width, patch_h, patch_w;

  int64_t positions() const { return patch_h * patch_w; }
  int64_t tokens_per_row() const { return width / patch_w; }
  int64_t tokens() const { return height / patch_h * tokens_per_row(); }
};

// A map [B, C, H, W] whose channels are adjacent in memory; strides in elements.
struct MapView {
  void* data;
  int64_t batch_stride, row_stride, column_stride;
};

// Walks the tokens n, n + 1, ... of group p of one sample; offset() is in elements from the start of the map.
class TokenCursor {
 public:
  TokenCursor(const TokenGrid& grid, const MapView& map, int64_t b, int64_t p, int64_t n)
      : per_row_(grid.tokens_per_row()),
        column_(n % per_row_),
        step_(grid.patch_w * map.column_stride),
        next_row_(grid.patch_h * map.row_stride - (per_row_ - 1) * step_),
        offset_(
            b * map.batch_stride + (n / per_row_ * grid.patch_h + p / grid.patch_w) * map.row_stride +
            p % grid.patch_w * map.column_stride + column_ * step_) {}

  int64_t offset() const { return offset_; }

  void next() {
    if (++column_ == per_row_) {
      column_ = 0;
      offset_ += next_row_;
    } else {
      offset_ += step_;
    }
  }

 private:
  int64_t per_row_, column_, step_, next_row_, offset_;
};

}  // namespace mobilevit::cpu

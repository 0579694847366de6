// 3x3 convolution by minimal filtering, F(2x2, 3x3) (Winograd; Lavin and Gray, arXiv 1509.09308, section 4.1): with G,
// B and A constant matrices, each tile of 2 x 2 outputs is
//   A^T [sum over channels of (G g G^T) * (B^T d B)] A
// of its 4 x 4 pixels d, where * is elementwise: 16 multiplications in place of 36. The products of a position in the
// tile are a matrix product of tiles by channels, so that a block of tiles is transformed, goes through 16 of them and
// is transformed back, all in one core's L2. Threads share the tiles.
#include "cpu/winograd_convolution_kernel.h"

#include "cpu/dtypes.h"
#include "cpu/grain.h"
#include "cpu/linear.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int kPlanes = WinogradShape::kPlanes;
constexpr int64_t kBlockBytes = 512 * 1024;  // of transformed pixels and products

// T: of the maps.
template <typename T>
class Blocks {
  using V = Vec<float>;
  static constexpr int64_t kLanes = V::size();

 public:
  Blocks(const WinogradConvolution& args, const WinogradWeights& weights, int64_t tiles)
      : args_(args),
        shape_(args.shape),
        weights_(weights),
        in_stride_(padded_row<float>(shape_.in_channels)),
        out_stride_(padded_row<float>(shape_.out_channels)),
        tiles_(std::min(tiles, tiles_of_a_block())),
        memory_(kPlanes * tiles_ * (in_stride_ + out_stride_)),
        pixels_(memory_.take(kPlanes * tiles_ * in_stride_)),
        products_(memory_.take(kPlanes * tiles_ * out_stride_)),
        padding_(shape_.in_channels, T(0)) {}

  // Tiles [begin, end) of all samples, in blocks as equal as possible.
  void run(int64_t begin, int64_t end) {
    for (int64_t blocks = (end - begin + tiles_ - 1) / tiles_; blocks > 0; --blocks) {
      const int64_t count = (end - begin + blocks - 1) / blocks;
      for (int64_t i = 0; i < count; ++i) transform_pixels(begin + i, pixels_ + i * in_stride_);
      multiply(count);
      for (int64_t i = 0; i < count; ++i) {
        const float* products = products_ + i * out_stride_;
        args_.silu ? transform_products<true>(begin + i, products) : transform_products<false>(begin + i, products);
      }
      begin += count;
    }
  }

 private:
  // Whole tiles of the product where there are several.
  int64_t tiles_of_a_block() const {
    const int64_t tile_bytes = kPlanes * (in_stride_ + out_stride_) * static_cast<int64_t>(sizeof(float));
    return std::max(kBlockBytes / tile_bytes / kGemmRows, int64_t(1)) * kGemmRows;
  }

  // Sample, and the row and column of the first output.
  struct Place {
    int64_t sample, row, column;
  };
  Place place(int64_t tile) const {
    const int64_t tiles = shape_.tiles_of_a_sample(), columns = shape_.tile_columns(), index = tile % tiles;
    return {tile / tiles, 2 * (index / columns), 2 * (index % columns)};
  }

  void transform_pixels(int64_t tile, float* out) const {
    transform_pixels(tile, args_.x, args_.x_channels, out);
    const int64_t others = shape_.in_channels - args_.x_channels;
    if (others > 0) transform_pixels(tile, args_.beside, others, out + args_.x_channels);
  }

  // out[plane, c] = B^T d B
  void transform_pixels(int64_t tile, const MapView& map, int64_t channels, float* out) const {
    const T* pixels[4][4];
    find_pixels(place(tile), map, pixels);
    const int64_t plane = tiles_ * in_stride_;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c);
      V half[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        V d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) d[i] = load_as<float>(pixels[i][j] + c, lanes);
        half[0][j] = d[0] - d[2];
        half[1][j] = d[1] + d[2];
        half[2][j] = d[2] - d[1];
        half[3][j] = d[1] - d[3];
      }
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        float* target = out + 4 * i * plane + c;
        (half[i][0] - half[i][2]).store(target, static_cast<int>(lanes));
        (half[i][1] + half[i][2]).store(target + plane, static_cast<int>(lanes));
        (half[i][2] - half[i][1]).store(target + 2 * plane, static_cast<int>(lanes));
        (half[i][1] - half[i][3]).store(target + 3 * plane, static_cast<int>(lanes));
      }
    }
  }

  // Outside of the map they are zeros.
  void find_pixels(const Place& place, const MapView& map, const T* (&pixels)[4][4]) const {
    const T* sample = static_cast<const T*>(map.data) + place.sample * map.batch_stride;
    for (int i = 0; i < 4; ++i) {
      const int64_t y = place.row - 1 + i;
      for (int j = 0; j < 4; ++j) {
        const int64_t x = place.column - 1 + j;
        const bool inside = y >= 0 && y < shape_.height && x >= 0 && x < shape_.width;
        pixels[i][j] = inside ? sample + y * map.row_stride + x * map.column_stride : padding_.data();
      }
    }
  }

  // products[plane] = pixels[plane] weight[plane]^T
  void multiply(int64_t count) const {
    for (int plane = 0; plane < kPlanes; ++plane) {
      const RowMajor<float> left{pixels_ + plane * tiles_ * in_stride_, in_stride_};
      const auto right = PanelMatrix<float>::packed(weights_.planes[plane], shape_.in_channels);
      float* products = products_ + plane * tiles_ * out_stride_;
      gemm_panels(count, shape_.out_channels, shape_.in_channels, left, right, products, out_stride_, Overwrite());
    }
  }

  // The outputs of a tile: A^T m A and the bias.
  template <bool kSilu>
  void transform_products(int64_t tile, const float* products) const {
    const Place at = place(tile);
    const int64_t plane = tiles_ * out_stride_, channels = shape_.out_channels, row = shape_.width * channels;
    T* out = static_cast<T*>(args_.out) + ((at.sample * shape_.height + at.row) * shape_.width + at.column) * channels;
    const bool has_row = at.row + 1 < shape_.height, has_column = at.column + 1 < shape_.width;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const int64_t lanes = std::min(kLanes, channels - c);
      V half[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        V m[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) m[i] = V::loadu(products + (4 * i + j) * plane + c);
        half[0][j] = m[0] + m[1] + m[2];
        half[1][j] = m[1] - m[2] - m[3];
      }
      const V bias = V::loadu(weights_.bias + c);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        if (i == 1 && !has_row) continue;
        const auto finish = [&](const V& value, T* target) {
          store_as(kSilu ? silu<float>(value + bias) : value + bias, target + i * row + c, lanes);
        };
        finish(half[i][0] + half[i][1] + half[i][2], out);
        if (has_column) finish(half[i][1] - half[i][2] - half[i][3], out + channels);
      }
    }
  }

  const WinogradConvolution& args_;
  const WinogradShape& shape_;
  const WinogradWeights& weights_;
  int64_t in_stride_, out_stride_;
  int64_t tiles_;  // of a block
  Workspace<float> memory_;
  float *pixels_, *products_;  // [16, tiles_, in_stride_], [16, tiles_, out_stride_]
  std::vector<T> padding_;
};

}  // namespace

void winograd_convolution(const WinogradConvolution& args) {
  const WinogradShape& shape = args.shape;
  const WinogradWeights weights(args.packed, shape);
  const int64_t grain = grain_of_flops(2 * kPlanes * shape.in_channels * shape.out_channels);
  with_storage_dtype(args.dtype, [&](auto element) {
    at::parallel_for(0, shape.batch * shape.tiles_of_a_sample(), grain, [&](int64_t begin, int64_t end) {
      Blocks<decltype(element)>(args, weights, end - begin).run(begin, end);
    });
  });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

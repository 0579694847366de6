// All layers of a MobileViT v2 transformer on a map. Between the statistics of two GroupNorms every token is
// independent: the tokens of a sample go through in tiles of rows, which keep to the cache; the normalised map never
// exists. Samples are shared among the threads, or the tiles of one sample where there are few samples.
#include "cpu/transformer_kernel.h"

#include "cpu/linear.h"
#include "cpu/norm.h"
#include "cpu/pool.h"
#include "cpu/token_io.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

constexpr int64_t kTileRows = 48;  // rows whose hidden values stay in L2

// Count, mean and sum of squared distances from it, of the values of a tile of rows.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  void add(const Moments& other) {
    if (other.count == 0) return;
    const double total = count + other.count, shift = other.mean - mean;
    mean += shift * other.count / total;
    squares += other.squares + shift * shift * count * other.count / total;
    count = total;
  }
};

struct Statistics {
  float mean, factor;  // factor: 1 / standard deviation
};

// relu(value) * context of the row's group.
struct GateValue : AddBias {
  const float* context;  // [positions, C]
  const int32_t* group;  // of each row
  int64_t channels;

  GateValue(const float* bias, const float* context, const int32_t* group, int64_t channels)
      : AddBias(bias), context(context), group(group), channels(channels) {}
  template <typename T>
  Vec<T> operator()(int64_t row, int64_t column, const Vec<T>& value) const {
    const Vec<T> biased = AddBias::operator()<T>(row, column, value);
    return at::vec::maximum(biased, Vec<T>(0)) * Vec<T>::loadu(context + group[row] * channels + column);
  }
};

template <typename T>
class SampleTransformer {
 public:
  // parallel: the tiles of a sample are shared among the threads.
  SampleTransformer(const SeparableTransformer& args, bool parallel)
      : args_(args),
        channels_(args.shape.channels),
        padded_(round_up(channels_, kPackedColumns)),
        positions_(args.shape.grid.positions()),
        rows_(args.shape.pixels()),
        tiles_((rows_ + kTileRows - 1) / kTileRows),
        parallel_(parallel),
        group_(rows_),
        moments_(tiles_),
        memory_(
            Workspace<float>::padded(rows_ * channels_) + 2 * Workspace<float>::padded(positions_ * padded_) +
            Workspace<float>::padded(tiles_ * positions_ * partial_size())),
        x_(memory_.take(rows_ * channels_)),
        pooled_(memory_.take(positions_ * padded_)),
        context_(memory_.take(positions_ * padded_)),
        partials_(memory_.take(tiles_ * positions_ * partial_size())) {
    const TokenGrid& grid = args.shape.grid;
    for (int64_t i = 0; i < rows_; ++i) {
      group_[i] = static_cast<int32_t>(i / grid.width % grid.patch_h * grid.patch_w + i % grid.width % grid.patch_w);
    }
  }

  void run(int64_t sample) {
    for_tiles([&](Scratch&, int64_t tile) { load(sample, tile); });
    for (const SeparableLayerWeights& layer : args_.layers) {
      const Statistics first = statistics();
      for_tiles([&](Scratch&, int64_t tile) { pool(layer, first, tile); });
      gather_context(layer, first);
      for_tiles([&](Scratch& scratch, int64_t tile) { attend(layer, first, scratch, tile); });
      const Statistics second = statistics();
      for_tiles([&](Scratch& scratch, int64_t tile) { feed_forward(layer, second, scratch, tile); });
    }
    const Statistics last = statistics();
    for_tiles([&](Scratch& scratch, int64_t tile) { store(sample, last, scratch, tile); });
  }

 private:
  // What one thread needs beside the tokens.
  struct Scratch {
    Workspace<float> memory;
    float *normed, *hidden;  // [kTileRows, C] and [kTileRows, hidden or C]

    Scratch(int64_t channels, int64_t hidden_channels)
        : memory(
              Workspace<float>::padded(kTileRows * channels) + Workspace<float>::padded(kTileRows * hidden_channels)),
          normed(memory.take(kTileRows * channels)),
          hidden(memory.take(kTileRows * hidden_channels)) {}
  };

  int64_t partial_size() const { return Workspace<float>::padded(PartialPool::size(channels_)); }
  float* row(int64_t index) const { return x_ + index * channels_; }
  int64_t first_row(int64_t tile) const { return tile * kTileRows; }
  int64_t count(int64_t tile) const { return std::min(kTileRows, rows_ - first_row(tile)); }
  PartialPool partial(int64_t tile, int64_t group) const {
    return PartialPool(partials_ + (tile * positions_ + group) * partial_size());
  }

  template <typename Function>
  void for_tiles(const Function& function) {
    const auto work = [&](int64_t begin, int64_t end) {
      Scratch scratch(channels_, std::max(args_.shape.hidden, channels_));
      for (int64_t tile = begin; tile < end; ++tile) function(scratch, tile);
    };
    if (parallel_) {
      at::parallel_for(0, tiles_, 1, work);
    } else {
      work(0, tiles_);
    }
  }

  template <typename Function>
  void for_pixels(int64_t sample, const MapView& map, int64_t tile, const Function& function) const {
    T* data = static_cast<T*>(map.data) + sample * map.batch_stride;
    const int64_t width = args_.shape.grid.width, first = first_row(tile), rows = count(tile);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t pixel = first + i;
      function(i, data + pixel / width * map.row_stride + pixel % width * map.column_stride);
    }
  }

  void load(int64_t sample, int64_t tile) {
    for_pixels(sample, args_.x, tile, [&](int64_t i, const T* pixel) {
      convert_row(pixel, row(first_row(tile) + i), channels_);
    });
    measure(tile);
  }

  // Takes the moments of a tile, for the norm that follows.
  void measure(int64_t tile) {
    const int64_t values = count(tile) * channels_;
    const float* data = row(first_row(tile));
    const float mean = row_sum(data, values) / static_cast<float>(values);
    moments_[tile] = {static_cast<double>(values), mean, squared_distance(data, values, mean)};
  }

  Statistics statistics() const {
    Moments total;
    for (const Moments& moments : moments_) total.add(moments);
    const double variance = total.squares / total.count;
    return {static_cast<float>(total.mean), static_cast<float>(1.0 / std::sqrt(variance + args_.shape.eps))};
  }

  void normalize(const Statistics& statistics, int64_t tile, float* normed) const {
    normalize_row(row(first_row(tile)), count(tile) * channels_, statistics.mean, statistics.factor, normed);
  }

  // The softmax of the queries of a tile, and its weighted sum of tokens, relative to the tile.
  void pool(const SeparableLayerWeights& layer, const Statistics& statistics, int64_t tile) {
    alignas(64) float queries[kTileRows];
    const int64_t first = first_row(tile), rows = count(tile);
    for (int64_t i = 0; i < rows; ++i) {
      queries[i] = centered_dot(row(first + i), layer.query, channels_, statistics.mean) * statistics.factor;
    }
    for (int64_t group = 0; group < positions_; ++group) partial(tile, group).clear(channels_);
    for (int64_t i = 0; i < rows; ++i) partial(tile, group_[first + i]).see(queries[i]);
    for (int64_t i = 0; i < rows; ++i) {
      partial(tile, group_[first + i]).add(queries[i], row(first + i), channels_);
    }
  }

  // The context vector of every group: its pooled token, normalised, through the key projection.
  void gather_context(const SeparableLayerWeights& layer, const Statistics& statistics) {
    for (int64_t group = 0; group < positions_; ++group) {
      float* pooled = pooled_ + group * padded_;
      join_pools(tiles_, channels_, [&](int64_t tile) { return partial(tile, group); }, pooled);
      normalize_row(pooled, channels_, statistics.mean, statistics.factor, pooled);
    }
    linear(layer.key, positions_, pooled_, padded_, context_, padded_, AddBias(layer.key.bias));
  }

  // x += out(relu(value) * context)
  void attend(const SeparableLayerWeights& layer, const Statistics& statistics, Scratch& scratch, int64_t tile) {
    const int64_t rows = count(tile), first = first_row(tile);
    normalize(statistics, tile, scratch.normed);
    const GateValue gate(layer.value.bias, context_, group_.data() + first, padded_);
    linear(layer.value, rows, scratch.normed, channels_, scratch.hidden, channels_, gate);
    linear(layer.out, rows, scratch.hidden, channels_, row(first), channels_, AddBiasToResidual(layer.out.bias));
    measure(tile);
  }

  // x += fc2(silu(fc1(norm(x))))
  void feed_forward(const SeparableLayerWeights& layer, const Statistics& statistics, Scratch& scratch, int64_t tile) {
    const int64_t rows = count(tile), hidden = args_.shape.hidden;
    float* x = row(first_row(tile));
    normalize(statistics, tile, scratch.normed);
    linear(layer.fc1, rows, scratch.normed, channels_, scratch.hidden, hidden, AddBiasSilu(layer.fc1.bias));
    linear(layer.fc2, rows, scratch.hidden, hidden, x, channels_, AddBiasToResidual(layer.fc2.bias));
    measure(tile);
  }

  void store(int64_t sample, const Statistics& statistics, Scratch& scratch, int64_t tile) {
    normalize(statistics, tile, scratch.normed);
    scale_shift_rows(scratch.normed, count(tile), channels_, args_.norm.weight, args_.norm.bias);
    for_pixels(sample, args_.out, tile, [&](int64_t i, T* pixel) {
      convert_row(scratch.normed + i * channels_, pixel, channels_);
    });
  }

  const SeparableTransformer& args_;
  int64_t channels_, padded_, positions_, rows_, tiles_;
  bool parallel_;
  std::vector<int32_t> group_;  // pixel position of each row
  std::vector<Moments> moments_;
  Workspace<float> memory_;
  float* x_;                  // [rows, C]
  float *pooled_, *context_;  // [positions, padded C]
  float* partials_;           // [tiles, positions, partial]
};

template <typename T>
void run(const SeparableTransformer& args) {
  const int64_t batch = args.shape.grid.batch, threads = at::get_num_threads();
  const int64_t share = (batch + threads - 1) / threads;
  // Threads that would wait at least a quarter of the time share each sample instead.
  if (4 * batch < 3 * share * threads) {
    SampleTransformer<T> transformer(args, true);
    for (int64_t sample = 0; sample < batch; ++sample) transformer.run(sample);
    return;
  }
  at::parallel_for(0, batch, share, [&](int64_t begin, int64_t end) {
    SampleTransformer<T> transformer(args, false);
    for (int64_t sample = begin; sample < end; ++sample) transformer.run(sample);
  });
}

}  // namespace

void separable_transformer(const SeparableTransformer& args) {
  with_storage_dtype(args.shape.dtype, [&](auto element) { run<decltype(element)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

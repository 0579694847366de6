// All layers of a MobileViT v2 transformer on a map. Between the statistics of two GroupNorms every token is
// independent: the tokens of a sample go through in tiles of rows, which keep to the cache; the normalised map never
// exists. Samples are shared among the threads, or the tiles of one sample where there are few samples.
#include "cpu/norm.h"
#include "cpu/packed_dtypes.h"
#include "cpu/pool.h"
#include "cpu/token_io.h"
#include "cpu/transformer_kernel.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <optional>
#include <vector>

namespace mobilevit::cpu::CPU_CAPABILITY {
namespace {

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
struct GateValue : AddBias<float> {
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

template <typename W>
class SampleTransformer {
  using Weights = TransformerWeights<SeparableLayerWeights<W>, W>;
  using Layer = SeparableLayerWeights<W>;
  using Pool = PartialPool<float>;

 public:
  // parallel: the tiles of a sample are shared among the threads.
  SampleTransformer(const Transformer& args, const Weights& weights, bool parallel)
      : args_(args),
        weights_(weights),
        channels_(args.shape.channels),
        padded_(round_up(channels_, kPackedColumns)),
        stride_(padded_inputs<W>(channels_)),
        hidden_stride_(padded_inputs<W>(std::max(args.shape.hidden, channels_))),
        positions_(args.shape.grid.positions()),
        rows_(args.shape.pixels()),
        tile_rows_(LinearRunner<W>::layer_rows()),
        tiles_((rows_ + tile_rows_ - 1) / tile_rows_),
        group_(rows_),
        moments_(tiles_),
        memory_(
            Workspace<float>::padded(rows_ * channels_) + Workspace<float>::padded(channels_) +
            Workspace<float>::padded(positions_ * padded_) +
            Workspace<float>::padded(tiles_ * positions_ * Pool::size(channels_))),
        x_(memory_.take(rows_ * channels_)),
        pooled_(memory_.take(channels_)),
        context_(memory_.take(positions_ * padded_)),
        partials_(memory_.take(tiles_ * positions_ * Pool::size(channels_))) {
    if (!parallel) serial_.emplace(*this);
    const TokenGrid& grid = args.shape.grid;
    for (int64_t i = 0; i < rows_; ++i) {
      group_[i] = static_cast<int32_t>(i / grid.width % grid.patch_h * grid.patch_w + i % grid.width % grid.patch_w);
    }
  }

  void run(int64_t sample) {
    for_tiles([&](Scratch&, int64_t tile) { load(sample, tile); });
    for (const Layer& layer : weights_.layers) {
      const Statistics first = statistics();
      for_tiles([&](Scratch&, int64_t tile) { pool(layer, first, tile); });
      with_scratch([&](Scratch& scratch) { gather_context(layer, first, scratch); });
      for_tiles([&](Scratch& scratch, int64_t tile) { attend(layer, first, scratch, tile); });
      const Statistics second = statistics();
      for_tiles([&](Scratch& scratch, int64_t tile) { feed_forward(layer, second, scratch, tile); });
    }
    const Statistics last = statistics();
    for_tiles([&](Scratch&, int64_t tile) { store(sample, last, tile); });
  }

 private:
  // What one thread needs beside the tokens. What pads the rows that the products read must be zero.
  struct Scratch {
    Workspace<W> memory;
    W *normed, *hidden;  // [rows, C] and [rows, hidden or C]
    LinearRunner<W> linear;

    explicit Scratch(const SampleTransformer& owner) : Scratch(owner, std::max(owner.tile_rows_, owner.positions_)) {}

   private:
    Scratch(const SampleTransformer& owner, int64_t rows)
        : memory(Workspace<W>::padded(rows * owner.stride_) + Workspace<W>::padded(rows * owner.hidden_stride_)),
          normed(memory.take(rows * owner.stride_)),
          hidden(memory.take(rows * owner.hidden_stride_)) {
      std::fill_n(normed, rows * owner.stride_, W(0));
      std::fill_n(hidden, rows * owner.hidden_stride_, W(0));
    }
  };

  float* row(int64_t index) const { return x_ + index * channels_; }
  int64_t first_row(int64_t tile) const { return tile * tile_rows_; }
  int64_t count(int64_t tile) const { return std::min(tile_rows_, rows_ - first_row(tile)); }
  Pool partial(int64_t tile, int64_t group) const {
    return Pool(partials_ + (tile * positions_ + group) * Pool::size(channels_));
  }

  template <typename Function>
  void with_scratch(const Function& function) {
    if (serial_) return function(*serial_);
    Scratch scratch(*this);
    function(scratch);
  }

  template <typename Function>
  void for_tiles(const Function& function) {
    const auto work = [&](int64_t begin, int64_t end) {
      with_scratch([&](Scratch& scratch) {
        for (int64_t tile = begin; tile < end; ++tile) function(scratch, tile);
      });
    };
    if (serial_) return work(0, tiles_);
    at::parallel_for(0, tiles_, 1, work);
  }

  // Calls function(row, pixel of the map) for the rows of a tile.
  template <typename Function>
  void for_pixels(int64_t sample, const MapView& map, int64_t tile, const Function& function) const {
    const int64_t width = args_.shape.grid.width, first = first_row(tile), rows = count(tile);
    with_storage_dtype(args_.shape.dtype, [&](auto element) {
      auto* data = static_cast<decltype(element)*>(map.data) + sample * map.batch_stride;
      for (int64_t i = first; i < first + rows; ++i) {
        function(row(i), data + i / width * map.row_stride + i % width * map.column_stride);
      }
    });
  }

  void load(int64_t sample, int64_t tile) {
    for_pixels(sample, args_.x, tile, [&](float* row, const auto* pixel) { convert_row(pixel, row, channels_); });
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

  void normalize(const Statistics& statistics, int64_t tile, W* normed) const {
    const int64_t rows = count(tile), first = first_row(tile);
    for (int64_t i = 0; i < rows; ++i) {
      if (i % 4 == 0) Products<factor_t<W>>::keep_ready();
      normalize_row(row(first + i), channels_, statistics.mean, statistics.factor, normed + i * stride_);
    }
  }

  // The weighted sums of a tile's tokens, group by group, with the softmax of their queries relative to the tile.
  void pool(const Layer& layer, const Statistics& statistics, int64_t tile) {
    static_assert(kMaxLayerRows <= kPoolTokens);
    const int64_t first = first_row(tile), last = first + count(tile);
    for (int64_t group = 0; group < positions_; ++group) {
      const float* tokens[kMaxLayerRows];
      float queries[kMaxLayerRows];
      int64_t found = 0;
      for (int64_t i = first; i < last; ++i) {
        if (group_[i] != group) continue;
        queries[found] = centered_dot(row(i), layer.query, channels_, statistics.mean) * statistics.factor;
        tokens[found++] = row(i);
      }
      partial(tile, group).fill(queries, tokens, found, channels_);
    }
  }

  // The context vector of every group: its pooled token, normalised, through the key projection.
  void gather_context(const Layer& layer, const Statistics& statistics, Scratch& scratch) {
    for (int64_t group = 0; group < positions_; ++group) {
      join_pools(tiles_, channels_, [&](int64_t tile) { return partial(tile, group); }, pooled_);
      normalize_row(pooled_, channels_, statistics.mean, statistics.factor, scratch.normed + group * stride_);
    }
    scratch.linear(layer.key, positions_, scratch.normed, stride_, context_, padded_, AddBias(layer.key.bias));
  }

  // x += out(relu(value) * context)
  void attend(const Layer& layer, const Statistics& statistics, Scratch& scratch, int64_t tile) {
    const int64_t rows = count(tile), first = first_row(tile);
    normalize(statistics, tile, scratch.normed);
    const GateValue gate(layer.value.bias, context_, group_.data() + first, padded_);
    scratch.linear(layer.value, rows, scratch.normed, stride_, scratch.hidden, hidden_stride_, gate);
    scratch.linear(
        layer.out, rows, scratch.hidden, hidden_stride_, row(first), channels_, AddBiasToResidual(layer.out.bias));
    measure(tile);
  }

  // x += fc2(silu(fc1(norm(x))))
  void feed_forward(const Layer& layer, const Statistics& statistics, Scratch& scratch, int64_t tile) {
    const int64_t rows = count(tile);
    float* x = row(first_row(tile));
    normalize(statistics, tile, scratch.normed);
    scratch.linear(
        layer.fc1, rows, scratch.normed, stride_, scratch.hidden, hidden_stride_, AddBiasSilu<W>(layer.fc1.bias));
    scratch.linear(layer.fc2, rows, scratch.hidden, hidden_stride_, x, channels_, AddBiasToResidual(layer.fc2.bias));
    measure(tile);
  }

  // out = norm(x), with the affine parameters of the last norm; the tokens are not needed after it.
  void store(int64_t sample, const Statistics& statistics, int64_t tile) {
    float* x = row(first_row(tile));
    normalize_row(x, count(tile) * channels_, statistics.mean, statistics.factor, x);
    scale_shift_rows(x, count(tile), channels_, weights_.norm_weight, weights_.norm_bias);
    for_pixels(sample, args_.out, tile, [&](const float* row, auto* pixel) { convert_row(row, pixel, channels_); });
  }

  const Transformer& args_;
  const Weights& weights_;
  int64_t channels_, padded_, stride_, hidden_stride_, positions_, rows_, tile_rows_, tiles_;
  std::vector<int32_t> group_;  // pixel position of each row
  std::vector<Moments> moments_;
  Workspace<float> memory_;
  float* x_;         // [rows, C]
  float* pooled_;    // [C], of one group
  float* context_;   // [positions, padded C]
  float* partials_;  // [tiles, positions, partial]
  std::optional<Scratch> serial_;
};

template <typename W>
void run(const Transformer& args) {
  const TransformerWeights<SeparableLayerWeights<W>, W> weights(
      args.packed, args.num_layers, args.shape.channels, args.shape.hidden);
  const int64_t batch = args.shape.grid.batch, threads = at::get_num_threads();
  const int64_t share = (batch + threads - 1) / threads;
  // Threads that would wait at least a quarter of the time share each sample instead.
  if (4 * batch < 3 * share * threads) {
    SampleTransformer<W> transformer(args, weights, true);
    for (int64_t sample = 0; sample < batch; ++sample) transformer.run(sample);
    return;
  }
  at::parallel_for(0, batch, share, [&](int64_t begin, int64_t end) {
    SampleTransformer<W> transformer(args, weights, false);
    for (int64_t sample = begin; sample < end; ++sample) transformer.run(sample);
  });
}

}  // namespace

void separable_transformer(const Transformer& args) {
  with_packed_dtype(args.packed_dtype, [&](auto weight) { run<decltype(weight)>(args); });
}

}  // namespace mobilevit::cpu::CPU_CAPABILITY

// The packed parameters of a transformer, as mobilevit_kernels/ops/packing.py writes them: one array, pieces in the
// order in which the kernels read them. The same for every instruction set.
#pragma once

#include <cstdint>
#include <vector>

namespace mobilevit::cpu {

// Columns of a panel of packed weights, and the multiple of elements that vectors are padded to.
constexpr int64_t kPackedColumns = 32;

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// 16-bit weights lie in pairs of inputs.
template <typename W>
constexpr int64_t paired_inputs(int64_t inputs) {
  return sizeof(W) == 2 ? round_up(inputs, 2) : inputs;
}

// Inputs of a packed layer: in 16 bits whole tiles of the matrix unit, whose rows fill cache lines.
constexpr int64_t kTileInputs = 32;

template <typename W>
constexpr int64_t padded_inputs(int64_t inputs) {
  return sizeof(W) == 2 ? round_up(inputs, kTileInputs) : inputs;
}

// A linear layer: panels of kPackedColumns outputs and a bias padded with zeros. A panel is [inputs, kPackedColumns],
// or [padded inputs / 2, kPackedColumns, 2] in 16 bits, with zeros behind the inputs.
template <typename W>
struct PackedLinear {
  const W* weight;
  const float* bias;
  int64_t inputs, outputs;
};

// Takes the pieces of a packed array one after another; total() is what was taken so far, in elements.
template <typename W>
class PackedReader {
 public:
  explicit PackedReader(const W* data) : data_(data) {}

  PackedLinear<W> linear(int64_t outputs, int64_t inputs) {
    const W* weight = matrix(outputs, inputs);
    return {weight, vector(outputs), inputs, outputs};
  }
  // The weight of a linear layer alone.
  const W* matrix(int64_t outputs, int64_t inputs) {
    return take(round_up(outputs, kPackedColumns) * padded_inputs<W>(inputs));
  }
  // Vectors are float32 beside weights of any dtype.
  const float* vector(int64_t size) {
    constexpr int64_t kElements = sizeof(float) / sizeof(W);
    return reinterpret_cast<const float*>(take(kElements * round_up(size, kPackedColumns)));
  }
  int64_t total() const { return total_; }

 private:
  const W* take(int64_t elements) {
    total_ += elements;
    return data_ + total_ - elements;
  }

  const W* data_;
  int64_t total_ = 0;
};

// Linear layers of one layer of MobileViT v1; affine parameters of the norms are part of qkv and fc1.
template <typename W>
struct TransformerLayerWeights {
  PackedLinear<W> qkv, proj, fc1, fc2;

  TransformerLayerWeights(PackedReader<W>& reader, int64_t channels, int64_t hidden)
      : qkv(reader.linear(3 * channels, channels)),
        proj(reader.linear(channels, channels)),
        fc1(reader.linear(hidden, channels)),
        fc2(reader.linear(channels, hidden)) {}
};

// Of MobileViT v2; the query is a vector and its bias falls out of the softmax.
template <typename W>
struct SeparableLayerWeights {
  const float* query;
  PackedLinear<W> key, value, out, fc1, fc2;

  SeparableLayerWeights(PackedReader<W>& reader, int64_t channels, int64_t hidden)
      : query(reader.vector(channels)),
        key(reader.linear(channels, channels)),
        value(reader.linear(channels, channels)),
        out(reader.linear(channels, channels)),
        fc1(reader.linear(hidden, channels)),
        fc2(reader.linear(channels, hidden)) {}
};

// All layers and the norm after the last one.
template <typename Layer, typename W>
struct TransformerWeights {
  std::vector<Layer> layers;
  const float *norm_weight, *norm_bias;
  int64_t total;  // elements

  TransformerWeights(const void* packed, int64_t num_layers, int64_t channels, int64_t hidden) {
    PackedReader<W> reader(static_cast<const W*>(packed));
    layers.reserve(num_layers);
    for (int64_t i = 0; i < num_layers; ++i) layers.emplace_back(reader, channels, hidden);
    norm_weight = reader.vector(channels);
    norm_bias = reader.vector(channels);
    total = reader.total();
  }
};

}  // namespace mobilevit::cpu

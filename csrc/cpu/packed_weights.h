// The packed parameters of a transformer, as mobilevit_kernels/ops/packing.py writes them: one float32 array, pieces in
// the order in which the kernels read them. The same for every instruction set.
#pragma once

#include <cstdint>

namespace mobilevit::cpu {

// Columns of a panel of packed weights, and the multiple of elements that vectors are padded to.
constexpr int64_t kPackedColumns = 32;

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// A linear layer: panels of kPackedColumns outputs, each [inputs, kPackedColumns], and a bias padded with zeros.
struct PackedLinear {
  const float *weight, *bias;
  int64_t inputs, outputs;
};

// Takes the pieces of a packed array one after another; total() is what was taken so far, in elements.
class PackedReader {
 public:
  explicit PackedReader(const float* data) : data_(data) {}

  PackedLinear linear(int64_t outputs, int64_t inputs) {
    const float* weight = vector(round_up(outputs, kPackedColumns) * inputs);
    return {weight, vector(outputs), inputs, outputs};
  }
  const float* vector(int64_t size) {
    const float* piece = data_ + total_;
    total_ += round_up(size, kPackedColumns);
    return piece;
  }
  int64_t total() const { return total_; }

 private:
  const float* data_;
  int64_t total_ = 0;
};

// Linear layers of one layer of MobileViT v1; affine parameters of the norms are part of qkv and fc1.
struct TransformerLayerWeights {
  PackedLinear qkv, proj, fc1, fc2;

  TransformerLayerWeights(PackedReader& reader, int64_t channels, int64_t hidden)
      : qkv(reader.linear(3 * channels, channels)),
        proj(reader.linear(channels, channels)),
        fc1(reader.linear(hidden, channels)),
        fc2(reader.linear(channels, hidden)) {}
};

// Of MobileViT v2; the query is a vector and its bias falls out of the softmax.
struct SeparableLayerWeights {
  const float* query;
  PackedLinear key, value, out, fc1, fc2;

  SeparableLayerWeights(PackedReader& reader, int64_t channels, int64_t hidden)
      : query(reader.vector(channels)),
        key(reader.linear(channels, channels)),
        value(reader.linear(channels, channels)),
        out(reader.linear(channels, channels)),
        fc1(reader.linear(hidden, channels)),
        fc2(reader.linear(channels, hidden)) {}
};

// The norm after the last layer.
struct NormWeights {
  const float *weight, *bias;

  NormWeights(PackedReader& reader, int64_t channels)
      : weight(reader.vector(channels)), bias(reader.vector(channels)) {}
};

}  // namespace mobilevit::cpu

// The wave engine: runs an integer context network over all symbols at once to encode, and wave by
// wave to decode. docs/waves.md explains it; pycodec/context/wave_network.py defines the network.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/trimmed_conv2d_kernel.hpp"
#include "rans/decoder.hpp"
#include "rans/tables.hpp"

namespace pycodec {

// A layer as the caller describes it; all pointers are to contiguous arrays, copied.
struct WaveLayer {
  int input, residual, output;  // tensors; residual -1: none; output -1: the table indexes
  int in_width, out_width;      // channels in a group
  int kernel;                   // odd
  const std::int8_t* weight;    // [groups][out_width][kernel][kernel][groups][in_width]
  const std::uint8_t* mask;     // [groups out][groups in][kernel][kernel], 0 or 1
  const std::int32_t* bias;     // [groups][out_width]
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  std::int32_t residual_multiplier;
  int shift;
  std::int32_t lower, upper;  // of int8; of uint8 for the table indexes
};

// Symbols of equal t = group_step * group + row_step * row + column_step * column are one wave.
struct WaveOrder {
  std::int64_t group_step, row_step, column_step;
};

class WaveNetwork {
 public:
  // Tensor 0 holds the symbols, each as the int8 value that it is clamped to. Throws
  // std::invalid_argument for a network that is none, or that sees what is not decoded yet.
  WaveNetwork(int groups, const std::vector<WaveLayer>& layers, const WaveOrder& order);
  ~WaveNetwork();

  int groups() const { return groups_; }
  std::int64_t num_waves(std::int64_t height, std::int64_t width) const;

  // symbols: int32 [groups][height][width]. Writes them in the order of coding, with the index of
  // the table of each.
  void encode(const std::int32_t* symbols, std::int64_t height, std::int64_t width,
              std::int32_t* ordered_symbols, std::uint8_t* indexes, int threads) const;

  // The opposite. Throws what the decoder throws.
  void decode(rans::Decoder& decoder, std::int64_t height, std::int64_t width,
              std::int32_t* symbols, int threads) const;

 private:
  struct Layer;
  struct Frames;
  struct Wave;

  int groups_;
  int num_tensors_ = 1;
  int padding_ = 0;               // of every frame: the largest radius
  std::vector<int> pixel_bytes_;  // by tensor
  std::vector<Layer> layers_;
  WaveOrder order_;

  Wave wave_at(std::int64_t t, std::int64_t height, std::int64_t width) const;
  void run_layer(const Layer& layer, Frames& frames, int group, const std::int64_t* rows,
                 const std::int64_t* columns, int count, std::uint8_t* const* indexes) const;
};

}  // namespace pycodec

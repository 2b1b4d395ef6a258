// The integer trimmed convolution with its weights packed: one layer over whole pictures, and what
// the wave engine (wave_network.hpp) is made of. pycodec/ops/quantized_trimmed_conv2d.py is the
// definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/quantized_trimmed_conv2d_kernel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {

TrimmedKernel trimmed_kernel(SimdLevel level);

// Bytes of a frame's pixel with so many channels.
inline int trimmed_pixel_bytes(int channels) {
  return (channels + kTrimmedGroup - 1) / kTrimmedGroup * kTrimmedGroup;
}

// All pointers are to contiguous arrays, copied.
struct TrimmedConvParameters {
  int groups;
  int in_width, out_width;          // channels in a group
  int kernel_rows, kernel_columns;  // odd
  const std::int8_t* weight;        // [groups][out_width][rows][columns][groups][in_width]
  const std::uint8_t* mask;         // [groups out][groups in][rows][columns], 0 or 1
  const std::int32_t* bias;         // [groups][out_width]
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  const std::int32_t* residual_multiplier;  // or null
  int shift;
  std::int32_t lower, upper;  // of int8 or of uint8
};

class TrimmedConv {
 public:
  // Throws std::invalid_argument for parameters out of range.
  explicit TrimmedConv(const TrimmedConvParameters& parameters);

  int groups() const { return static_cast<int>(groups_.size()); }
  int in_width() const { return in_width_; }
  int out_width() const { return out_width_; }
  int kernel_rows() const { return kernel_rows_; }
  int kernel_columns() const { return kernel_columns_; }

  // Where the kernels find what output group `group` sees, in a frame where it is so many pixels
  // from row to row and from column to column.
  struct Places {
    std::vector<std::int64_t> inputs, blocks, pairs;
  };
  Places places(int group, std::int64_t row_pitch, std::int64_t column_pitch) const;

  // For the kernels; refers to this object and to `places`.
  TrimmedLayer layer(int group, const Places& places, std::uint8_t flip,
                     std::uint8_t residual_flip) const;

  // The same for positions that see nothing: the accumulator is the bias.
  TrimmedLayer blind_layer(int group, std::uint8_t flip, std::uint8_t residual_flip) const;

  // x: int8 [batch][height][width][groups * in_width]. residual (or null) and out: int8, out uint8
  // if the upper bound exceeds 127, [batch][height][width][groups * out_width].
  void run(const std::int8_t* x, const std::int8_t* residual, std::int64_t batch,
           std::int64_t height, std::int64_t width, std::uint8_t* out, int threads) const;

 private:
  struct Group;
  Places places(const Group& group, std::int64_t row_pitch, std::int64_t column_pitch) const;
  TrimmedLayer layer(const Group& group, const Places& places, std::uint8_t flip,
                     std::uint8_t residual_flip) const;

  struct Input {
    std::int64_t row, column;  // of the tap
    int byte;                  // of the pixel
  };
  struct Group {
    int width, vectors;  // output channels
    std::vector<Input> inputs, blocks, pairs;
    AlignedBuffer weights{0}, block_weights{0}, pair_weights{0};
    std::vector<std::int32_t> bias, own_bias, multiplier, negative_multiplier, residual_multiplier;
  };

  int in_width_, out_width_, kernel_rows_, kernel_columns_;
  int shift_;
  std::int32_t lower_, upper_;
  std::vector<Group> groups_;
  std::vector<Group> merged_;  // some groups as one, or none: where it is faster for whole pictures
};

}  // namespace pycodec

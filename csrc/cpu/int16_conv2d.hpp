// The convolution of int16 by int16. pycodec/ops/int16_conv2d.py is its definition.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/int16_conv2d_kernel.hpp"

namespace pycodec {

struct Int16ConvParameters {
  int out_channels, kernel_height, kernel_width, in_channels;
  const std::int16_t* weight;  // [out_channels][kernel_height][kernel_width][in_channels]
  const std::int32_t* bias;    // [out_channels], like the multipliers
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  int shift;
  std::int32_t limit;
};

// A layer whose weights are packed once and run often. Immutable, so several threads may run one
// layer at the same time; each run takes the SIMD level in force.
class Int16Conv2d {
 public:
  // Throws std::invalid_argument for even kernels, empty dimensions, shifts outside 1..62 and
  // limits below 0.
  explicit Int16Conv2d(const Int16ConvParameters& parameters);

  int out_channels() const { return out_channels_; }
  int in_channels() const { return in_channels_; }
  // Of a position, at the taps that any output sees.
  std::int64_t products() const {
    return std::int64_t{out_channels_} * in_channels_ * static_cast<std::int64_t>(taps().size());
  }
  int kernel_height() const { return kernel_height_; }
  int kernel_width() const { return kernel_width_; }
  std::int32_t limit() const { return limit_; }
  // Channels of what `tile.x` points to: one more than in_channels if that is odd.
  int padded_in_channels() const { return 2 * pairs_; }
  // (down, right) of all taps that any output sees.
  std::vector<std::pair<int, int>> taps() const;

  // x: int16 [batch][height][width][in_channels]; out: int16 or int32 [batch][height][width]
  // [out_channels]. Stride 1, zero padding that keeps the size.
  void run(const std::int16_t* x, std::int64_t batch, std::int64_t height, std::int64_t width,
           void* out, bool out_is_int32, int threads) const;

  // For callers with frames of their own, whose rows are `pitch` values apart. `tap_offsets` is
  // where chunk `number` sees things; it computes some channels, those from first_channel(number)
  // on, of `positions` positions.
  std::vector<std::vector<std::int64_t>> tap_offsets(std::int64_t pitch) const;
  int num_chunks() const { return static_cast<int>(chunks_.size()); }
  int first_channel(int number) const { return chunks_[number].first_vector * kInt16Lanes; }
  void run_chunk(int number, const std::vector<std::int64_t>& tap_offsets,
                 const std::int16_t* const* x, std::int64_t positions, void* out,
                 std::int64_t out_step, bool out_is_int32) const;

 private:
  struct Chunk {
    int first_vector, vectors;
    std::vector<int> taps;     // numbers, row by row
    std::size_t first_weight;  // in weights_
  };

  int out_channels_, kernel_height_, kernel_width_, in_channels_, pairs_, shift_;
  std::int32_t limit_;
  std::vector<Chunk> chunks_;
  std::vector<std::int16_t> weights_;
  std::vector<std::int32_t> bias_, multiplier_, negative_multiplier_;  // padded to whole vectors
};

}  // namespace pycodec

// What the SIMD variants of the int16 convolution have in common. Only plain structs and functions
// with internal linkage: see simd_level.hpp.
//
// Output channels come in vectors of 16, whatever the level, and these in chunks that a kernel
// holds in registers for some positions at once. A chunk has a list of the taps that it sees: those
// whose weights are all zero (the mask of a context model, the holes of a transposed convolution)
// cost nothing. Weights lie in the order of use: [tap][pair of input channels][vector][16
// outputs][2].
#pragma once

#include <cstdint>

namespace pycodec {

constexpr int kInt16Lanes = 16;
constexpr int kInt16MaxVectors = 3;    // in a chunk
constexpr int kInt16MaxPositions = 8;  // in a register tile

// acc * (acc < 0 ? negative_multiplier : multiplier), shifted and clamped.
struct Int16Chunk {
  int vectors;
  int channels;  // that exist, of 16 * vectors
  const std::int16_t* weights;
  const std::int64_t* taps;  // from a position to what it sees, in values
  int num_taps;
  int pairs;  // of input channels
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  int shift;
  std::int32_t limit;
};

struct Int16Tile {
  const std::int16_t* const* x;  // of each position
  int positions;                 // 1 to kInt16MaxPositions
  void* out;                     // int16 or int32 [positions], of the chunk's first channel
  std::int64_t out_step;         // from position to position, in values
  bool out_is_int32;
};

using Int16Kernel = void (*)(const Int16Chunk&, const Int16Tile&);

void run_int16_scalar(const Int16Chunk& chunk, const Int16Tile& tile);
void run_int16_avx2(const Int16Chunk& chunk, const Int16Tile& tile);
void run_int16_avx512vnni(const Int16Chunk& chunk, const Int16Tile& tile);

// Requantizes and stores 16 accumulators, of the channels from `first` on at a position.
static inline void store_int16_lanes(const Int16Chunk& chunk, const Int16Tile& tile, int position,
                                     int first, const std::int32_t* acc) {
  const std::int64_t half = std::int64_t{1} << (chunk.shift - 1);
  const int left = chunk.channels - first;
  const std::int64_t at = position * tile.out_step + first;
  for (int lane = 0; lane < (left < kInt16Lanes ? left : kInt16Lanes); ++lane) {
    const std::int32_t* multiplier = acc[lane] < 0 ? chunk.negative_multiplier : chunk.multiplier;
    std::int64_t value = (std::int64_t{acc[lane]} * multiplier[first + lane] + half) >> chunk.shift;
    value = value < -chunk.limit ? -chunk.limit : value > chunk.limit ? chunk.limit : value;
    if (tile.out_is_int32) {
      static_cast<std::int32_t*>(tile.out)[at + lane] = static_cast<std::int32_t>(value);
    } else {
      static_cast<std::int16_t*>(tile.out)[at + lane] = static_cast<std::int16_t>(value);
    }
  }
}

}  // namespace pycodec

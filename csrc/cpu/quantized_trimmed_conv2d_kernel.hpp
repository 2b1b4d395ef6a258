// The integer trimmed convolution: what its SIMD variants have in common. Only plain structs and
// functions with internal linkage: see simd_level.hpp. pycodec/ops/quantized_trimmed_conv2d.py is
// the definition.
//
// Activations lie in frames, channels last, as uint8: the int8 value plus 128, and 128 in the
// padding. What an output group may see is a list of places at fixed offsets from the position's
// own; what the mask cuts off is not in it and costs nothing. As in quantized_conv2d_kernel.hpp a
// kernel computes a tile of positions x output channels in registers. The positions of a tile are
// the same distance apart: along a row, or along the line in which a wave cuts a group.
#pragma once

#include <cstdint>

namespace pycodec {

// Input channels to a multiply-add instruction, output channels to a vector.
constexpr int kTrimmedGroup = 4;
constexpr int kTrimmedLanes = 8;
constexpr int kTrimmedMaxVectors = 4;  // to a chunk: of output channels computed at once

// Channels in a row of memory, for layers with a single output channel in a group.
constexpr int kTrimmedBlock = 32;

// Input channels to a lane of 64 bits, for layers whose groups have a single vector.
constexpr int kTrimmedPair = 2 * kTrimmedGroup;

// Kernels may read so far beyond the last byte of a frame.
constexpr int kTrimmedSlack = kTrimmedBlock;

// One output group of a layer.
//
//     sum = acc * (acc >= 0 ? multiplier : negative_multiplier) + residual * residual_multiplier
//     out = clamp((sum + 2^(shift - 1)) >> shift, lower, upper) ^ flip
struct TrimmedLayer {
  int width;    // output channels
  int vectors;  // of them, the last perhaps in part beyond `width`
  int num_inputs;
  const std::int64_t* inputs;  // bytes from a position's pixel to kTrimmedGroup channels
  const std::int8_t* weights;  // [chunk][input][vector][lane][in group], 32-byte aligned
  int num_blocks;              // the same once more where width is 1, else none
  const std::int64_t* blocks;
  const std::int8_t* block_weights;  // [block][kTrimmedBlock], 32-byte aligned
  int num_pairs;                     // once more where there is one vector of several channels
  const std::int64_t* pairs;
  const std::int8_t* pair_weights;  // [pair][lane][kTrimmedPair], 64-byte aligned
  const std::int32_t* bias;         // less 128 times the sum of the weights
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  const std::int32_t* residual_multiplier;
  int shift;
  std::int32_t lower, upper;
  std::uint8_t flip, residual_flip;  // 128 for a frame, 0 for plain int8 or uint8
};

// Pointers are to the first position, steps are in bytes.
struct TrimmedTile {
  std::int64_t positions;
  const std::uint8_t* window;  // its pixel
  std::int64_t window_step;
  const std::uint8_t* residual;  // or null
  std::int64_t residual_step;
  std::uint8_t* out;
  std::int64_t out_step;
};

using TrimmedKernel = void (*)(const TrimmedLayer&, const TrimmedTile&);

void run_trimmed_scalar(const TrimmedLayer& layer, const TrimmedTile& tile);
void run_trimmed_avx2(const TrimmedLayer& layer, const TrimmedTile& tile);
void run_trimmed_avx512vnni(const TrimmedLayer& layer, const TrimmedTile& tile);

// One output from its accumulator.
static inline std::uint8_t trimmed_output(const TrimmedLayer& layer, int channel, std::int32_t acc,
                                          const std::uint8_t* residual) {
  const std::int32_t multiplier =
      (acc >= 0 ? layer.multiplier : layer.negative_multiplier)[channel];
  std::int64_t sum = std::int64_t{acc} * multiplier + (std::int64_t{1} << (layer.shift - 1));
  if (residual) {
    const auto value = static_cast<std::int8_t>(residual[channel] ^ layer.residual_flip);
    sum += std::int64_t{value} * layer.residual_multiplier[channel];
  }
  sum >>= layer.shift;
  if (sum < layer.lower) sum = layer.lower;
  if (sum > layer.upper) sum = layer.upper;
  return static_cast<std::uint8_t>(static_cast<std::uint8_t>(sum) ^ layer.flip);
}

}  // namespace pycodec

// The integer trimmed convolution: what its SIMD variants have in common. Only plain structs and
// functions with internal linkage: see simd_level.hpp. pycodec/ops/quantized_trimmed_conv2d.py is
// the definition.
//
// Activations lie in frames, channels last, as uint8: the int8 value plus 128, and 128 in the
// padding. What an output group may see is a list of segments, runs of memory at fixed offsets from
// the position's own place; what the mask cuts off is in none of them and costs nothing. As in
// quantized_conv2d_kernel.hpp a kernel computes a tile of positions x output channels in registers.
#pragma once

#include <cstdint>

namespace pycodec {

// Input channels to a multiply-add instruction, output channels to a vector.
constexpr int kTrimmedGroup = 4;
constexpr int kTrimmedLanes = 8;
constexpr int kTrimmedMaxVectors = 4;  // to a chunk: of output channels computed at once

struct TrimmedSegment {
  std::int64_t offset;  // bytes from the position's first channel
  int groups;           // of kTrimmedGroup bytes
};

// One output group of a layer.
//
//     sum = acc * (acc >= 0 ? multiplier : negative_multiplier) + residual * residual_multiplier
//     out = clamp((sum + 2^(shift - 1)) >> shift, lower, upper) ^ flip
struct TrimmedLayer {
  int width;    // output channels
  int vectors;  // of them, the last perhaps in part beyond `width`
  int num_segments;
  const TrimmedSegment* segments;
  const std::int8_t* weights;  // [chunk][segment][group][vector][lane][in group], 32-byte aligned
  const std::int32_t* bias;    // less 128 times the sum of the weights
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  std::int32_t residual_multiplier;
  int shift;
  std::int32_t lower, upper;
  std::uint8_t flip;  // 128 for a frame of int8
};

struct TrimmedTile {
  int positions;
  const std::uint8_t* const* windows;
  const std::uint8_t* const* residuals;  // or null
  std::uint8_t* const* outs;
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
    sum +=
        std::int64_t{static_cast<std::int8_t>(residual[channel] ^ 128)} * layer.residual_multiplier;
  }
  sum >>= layer.shift;
  if (sum < layer.lower) sum = layer.lower;
  if (sum > layer.upper) sum = layer.upper;
  return static_cast<std::uint8_t>(static_cast<std::uint8_t>(sum) ^ layer.flip);
}

}  // namespace pycodec

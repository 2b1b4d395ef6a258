// Requantization of integers, channel by channel. pycodec/ops/requantize.py is its definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/activation_frame.hpp"
#include "cpu/quantized_conv2d_kernel.hpp"
#include "cpu/requantize_kernel.hpp"

namespace pycodec {

// The kernel for the SIMD level in force.
RequantizeKernel requantize_kernel();

struct RequantizeParameters {
  std::vector<std::int32_t> multiplier;
  std::vector<std::int64_t> offset;
  int shift;
  std::int32_t lower, upper;

  // Throws std::invalid_argument for shifts outside 1..62 and lengths that differ.
  void check() const;
  RequantizeLayer layer() const;
};

// x: int16, or int32 if wide: [pixels][channels]. out: dense, uint8 or int8 or int16.
void requantize(const RequantizeParameters& parameters, const void* x, bool wide,
                std::int64_t pixels, OutputType type, void* out, int threads);

// x: dense [batch][height][width][channels] of the frame; fills all of the frame.
void requantize_to_frame(RequantizeKernel kernel, const RequantizeParameters& parameters,
                         const void* x, bool wide, const FrameWriter& writer, std::uint8_t* frame,
                         int threads);

}  // namespace pycodec

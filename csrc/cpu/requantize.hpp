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
  std::vector<std::int32_t> multiplier;  // [images][channels], or [channels] for all images
  std::vector<std::int64_t> offset;
  int channels;
  int shift;
  std::int32_t lower, upper;

  // Throws std::invalid_argument for shifts outside 1..62, lengths that differ, and parameters that
  // are neither one set for all images nor one for each.
  void check(std::int64_t images) const;
  RequantizeLayer layer(std::int64_t image) const;
};

// x: int16, or int32 if wide: [images][pixels][channels]. out: dense, uint8 or int8 or int16.
void requantize(const RequantizeParameters& parameters, const void* x, bool wide,
                std::int64_t images, std::int64_t pixels, OutputType type, void* out, int threads);

// x: dense [batch][height][width][channels] of the frame; fills all of the frame.
void requantize_to_frame(RequantizeKernel kernel, const RequantizeParameters& parameters,
                         const void* x, bool wide, const FrameWriter& writer, std::uint8_t* frame,
                         int threads);

}  // namespace pycodec

// What lies around the images of a batch, where these are tiles of one picture: margins that are
// not padding, but pixels of other images. docs/quantization.md, "On the sphere", says which.
#pragma once

#include <cstdint>

#include "cpu/activation_frame.hpp"

namespace pycodec {

// Numbers of pixels in a frame, margins counted. The border pixel becomes
// (left * (256 - weight) + right * weight + 128) >> 8, channel by channel.
struct BorderPixel {
  std::int64_t target, left, right, weight;
};

// Of all frames whose images have so many rows.
struct FrameBorders {
  std::int64_t height;
  const BorderPixel* pixels;
  std::int64_t count;
};

// Fills borders of a frame whose images are written. No pixel is both a target and read. Throws
// std::invalid_argument if one lies outside the frame, or a weight outside 0..256.
void fill_borders(const FrameBorders& borders, const FrameShape& shape, std::uint8_t* frame,
                  int threads);

}  // namespace pycodec

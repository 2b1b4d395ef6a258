#pragma once

#include <cstdint>
#include <stdexcept>

namespace pycodec {

// Of a trimmed convolution to the same size; channels fall into equal groups.
struct TrimmedShape {
  std::int64_t batch, in_channels, height, width, out_channels;
  std::int64_t kernel_height, kernel_width;
  std::int64_t groups_out, groups_in;
};

// Throws std::invalid_argument for negative sizes, kernels that are not odd, and groups that do not
// divide the channels.
inline void check_shape(const TrimmedShape& s) {
  if (s.batch < 0 || s.height < 0 || s.width < 0 || s.in_channels < 1 || s.out_channels < 1) {
    throw std::invalid_argument("a convolution needs channels, and no size below 0");
  }
  if (s.kernel_height % 2 != 1 || s.kernel_width % 2 != 1) {
    throw std::invalid_argument("the kernel's height and width must be odd");
  }
  if (s.groups_in < 1 || s.groups_out < 1 || s.in_channels % s.groups_in != 0 ||
      s.out_channels % s.groups_out != 0) {
    throw std::invalid_argument("channels cannot be split into that many equal groups");
  }
}

}  // namespace pycodec

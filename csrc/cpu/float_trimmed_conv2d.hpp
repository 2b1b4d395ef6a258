// The trimmed convolution in float32. pycodec/ops/trimmed_conv2d.py is its definition, and
// pycodec/ops/masked_conv2d.py the case of one group.
#pragma once

#include <cstdint>

#include "cpu/trimmed_shape.hpp"

namespace pycodec {

// x: [batch][in_channels][height][width]; weight: [out_channels][in_channels][kernel_height]
// [kernel_width]; mask: [groups_out][groups_in][kernel_height][kernel_width]; bias: [out_channels];
// out: [batch][out_channels][height][width]. What the mask cuts is neither read nor
// multiplied. An output's sum has the same order whatever the number of threads.
//
// Throws std::invalid_argument for negative sizes, kernels that are not odd, groups that do not
// divide the channels, and layers beyond 32-bit offsets.
void float_trimmed_conv2d(const TrimmedShape& shape, const float* x, const float* weight,
                          const bool* mask, const float* bias, float* out, int threads);

}  // namespace pycodec

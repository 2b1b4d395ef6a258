// The trimmed convolution in bfloat16 and its gradients, for training on processors that multiply
// such numbers (AVX-512 BF16, AMX). pycodec/ops/trimmed_conv2d.py is its definition. Sums are
// float32; a result is rounded once.
#pragma once

#include <cstdint>

#include "cpu/trimmed_shape.hpp"

namespace pycodec {

constexpr std::int64_t kBfloat16Channels = 32;  // input and output channels must be multiples

// Whether the processor, at the SIMD level in force, can.
bool runs_bfloat16();

// x: [batch][height][width][in_channels]; weight: [out_channels][in_channels][kernel_height]
// [kernel_width], anything where the mask cuts; mask: [groups_out][groups_in][kernel_height]
// [kernel_width]; bias: [out_channels]; out: [batch][height][width][out_channels].
//
// Throws std::invalid_argument where runs_bfloat16() is false or the shape does not fit.
void bfloat16_trimmed_conv2d(const TrimmedShape& shape, const std::uint16_t* x,
                             const std::uint16_t* weight, const bool* mask, const float* bias,
                             std::uint16_t* out, int threads);

// Gradients in the weight, like it and 0 where the mask cuts, and in the bias; grad is that in
// `out`. The last bits depend on the order in which threads end.
void bfloat16_trimmed_conv2d_gradients(const TrimmedShape& shape, const std::uint16_t* x,
                                       const std::uint16_t* grad, const bool* mask,
                                       float* weight_gradient, float* bias_gradient, int threads);

// Gradients of PReLU in x, [positions][channels], and in the slopes, [channels], which are a
// multiple of 32.
void bfloat16_prelu_gradients(std::int64_t positions, std::int64_t channels, const std::uint16_t* x,
                              const float* slope, const std::uint16_t* grad,
                              std::uint16_t* x_gradient, float* slope_gradient, int threads);

// (x + residual) / scale, rounded to the nearest of -127 to 127, ties to even, times scale. All but
// scale, [channels], are [positions][channels]; residual may be null, that is, zeros.
void bfloat16_fake_quantize(std::int64_t positions, std::int64_t channels, const std::uint16_t* x,
                            const std::uint16_t* residual, const float* scale, std::uint16_t* out,
                            int threads);

// Its gradients in x, which are those in the residual too, and in the scale, [channels]: as if
// rounding had the derivative 1 (LSQ, arXiv 1902.08153).
void bfloat16_fake_quantize_gradients(std::int64_t positions, std::int64_t channels,
                                      const std::uint16_t* x, const std::uint16_t* residual,
                                      const float* scale, const std::uint16_t* grad,
                                      std::uint16_t* x_gradient, float* scale_gradient,
                                      int threads);

}  // namespace pycodec

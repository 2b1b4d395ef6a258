// The trimmed convolutions on a GPU. pycodec/ops/trimmed_conv2d.py and quantized_trimmed_conv2d.py
// are their definitions, pycodec/ops/trimmed_kernels.py prepares the arguments.
#pragma once

#include <cstdint>

#include "cuda/int8.hpp"
#include "cuda/quantized_conv2d.hpp"

namespace pycodec::cuda {

enum class FloatType { kFloat32, kFloat64, kFloat16, kBfloat16 };

// All pointers are to device memory. A block is a tap of the kernel with kTrimmedDepth (floats) or
// 4 * kTrimmedWords (integers) input channels; which ones an output group sees, its list says.
struct TrimmedShape {
  std::int64_t batch, height, width;
  int in_channels, out_channels, kernel_height, kernel_width;
  int groups;                  // of output channels
  const std::int32_t* counts;  // [groups]: blocks in each list
  const std::int32_t* blocks;  // [groups][taps * blocks of a tap]: tap * blocks of a tap + block
};

constexpr int kTrimmedDepth = 16;
constexpr int kTrimmedWords = 8;

struct TrimmedConv2dArguments {
  TrimmedShape shape;
  FloatType type;
  const void* x;       // [batch][in_channels][height][width]
  const void* weight;  // [kernel_height][kernel_width][in_channels][out_channels], trimmed
  const void* bias;    // [out_channels], or null
  void* out;           // [batch][out_channels][height][width]
};

struct QuantizedTrimmedConv2dArguments {
  TrimmedShape shape;
  Requantization requantization;
  const std::int8_t* x;       // [batch][height][width][in_channels]
  const std::int8_t* weight;  // [out_channels][kernel_height][kernel_width][in_channels], trimmed
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  const std::int32_t* negative_multiplier;
  const std::int8_t* residual;              // [batch][height][width][out_channels], or null
  const std::int32_t* residual_multiplier;  // [out_channels], if there is a residual
  std::uint8_t* out;                        // likewise; the bytes of int8 or uint8
};

// The same as an untrimmed convolution: its zeros are multiplied too. On tensor cores that is
// faster than to leave them out without; quantized_trimmed_conv2d() does so where mma_suits().
inline QuantizedConv2dArguments untrimmed(const QuantizedTrimmedConv2dArguments& a) {
  QuantizedConv2dArguments all = {};
  all.x = a.x;
  all.weight = a.weight;
  all.bias = a.bias;
  all.multiplier = a.multiplier;
  all.negative_multiplier = a.negative_multiplier;
  all.scaled_residual = a.residual;
  all.residual_multiplier = a.residual_multiplier;
  all.out = a.out;
  all.batch = a.shape.batch;
  all.height = a.shape.height;
  all.width = a.shape.width;
  all.in_channels = a.shape.in_channels;
  all.out_channels = a.shape.out_channels;
  all.kernel_height = a.shape.kernel_height;
  all.kernel_width = a.shape.kernel_width;
  all.x_bytes = all.out_bytes = 1;
  all.weight_bits = 8;
  all.x_is_signed = true;
  all.stride = all.upscale = 1;
  all.shift = a.requantization.shift;
  all.lower = a.requantization.lower;
  all.upper = a.requantization.upper;
  return all;
}

// Each queues a kernel on `stream` (a cudaStream_t) of the current device and does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched.
void trimmed_conv2d(const TrimmedConv2dArguments& arguments, void* stream);
void quantized_trimmed_conv2d(const QuantizedTrimmedConv2dArguments& arguments, void* stream);

}  // namespace pycodec::cuda

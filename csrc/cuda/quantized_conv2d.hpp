// The integer convolution on a GPU. pycodec/ops/quantized_conv2d.py is its definition.
#pragma once

#include <cstdint>

namespace pycodec::cuda {

// All pointers are to device memory.
struct QuantizedConv2dArguments {
  const void* x;              // int8 or uint8 [batch][height][width][in_channels]
  const std::int8_t* weight;  // [out_channels][kernel_height][kernel_width][in_channels]
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  void* out;  // [batch][height][width][out_channels], out_bytes a value
  std::int64_t batch, height, width;
  int in_channels, out_channels, kernel_height, kernel_width;
  bool x_is_signed;
  int out_bytes;
  int shift;
  std::int32_t lower, upper;
};

// Queues the kernel on `stream` (a cudaStream_t) of the current device; does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched.
void quantized_conv2d(const QuantizedConv2dArguments& arguments, void* stream);

}  // namespace pycodec::cuda

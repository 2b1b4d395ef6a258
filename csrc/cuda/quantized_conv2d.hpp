// The integer convolution on a GPU. pycodec/ops/quantized_conv2d.py is its definition.
#pragma once

#include <cstdint>

namespace pycodec::cuda {

// All pointers are to device memory.
struct QuantizedConv2dArguments {
  const void* x;       // int8, uint8 or int16 [batch][height][width][in_channels]
  const void* weight;  // int8 or int16 [out_channels][kernel_height][kernel_width][in_channels], or
                       // of 4 bits, two input channels a byte
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  const std::int16_t* zero_point;  // [in_channels]: x outside the picture; null for 0
  const std::int16_t* residual;    // like out; null for none
  void* out;  // [batch][out_height * upscale][out_width * upscale][...], out_bytes a value
  std::int64_t batch, height, width;
  int in_channels, out_channels, kernel_height, kernel_width;
  int x_bytes, weight_bits, out_bytes;  // weight_bits: 4, 8 or 16
  bool x_is_signed;
  int stride, upscale, shift;
  std::int32_t lower, upper;

  // Positions of outputs, before they are spread to patches.
#ifdef __CUDACC__
  __host__ __device__
#endif
      std::int64_t out_height() const {
    return height > 0 ? (height - 1) / stride + 1 : 0;
  }
#ifdef __CUDACC__
  __host__ __device__
#endif
      std::int64_t out_width() const {
    return width > 0 ? (width - 1) / stride + 1 : 0;
  }
};

// Queues the kernel on `stream` (a cudaStream_t) of the current device; does not wait for it.
// Throws std::runtime_error where the kernel cannot be launched.
void quantized_conv2d(const QuantizedConv2dArguments& arguments, void* stream);

}  // namespace pycodec::cuda

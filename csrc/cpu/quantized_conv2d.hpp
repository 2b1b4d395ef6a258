// The integer convolution of the entropy models. pycodec/ops/quantized_conv2d.py is its definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/aligned_buffer.hpp"
#include "cpu/quantized_conv2d_kernel.hpp"

namespace pycodec {

// A layer whose weights are packed once, for the SIMD level in force at the time, and run often.
// Immutable, so several threads may run one layer at the same time.
class QuantizedConv2d {
 public:
  struct Shape {
    int out_channels, kernel_height, kernel_width, in_channels;
  };

  // weight: int8 [out_channels][kernel_height][kernel_width][in_channels]; bias and multiplier: one
  // a channel. Throws std::invalid_argument for even kernels, empty dimensions and shifts outside
  // 1..62.
  QuantizedConv2d(const Shape& shape, const std::int8_t* weight, const std::int32_t* bias,
                  const std::int32_t* multiplier, int shift, OutputType output_type, bool relu);

  const Shape& shape() const { return shape_; }
  OutputType output_type() const { return output_type_; }
  const char* simd_level() const { return kernel_.name; }

  // x: int8 or uint8 [batch][height][width][in_channels]; out: [batch][height][width][out_channels]
  // of output_type. Stride 1, zero padding that keeps the size.
  void run(const void* x, bool x_is_signed, std::int64_t batch, std::int64_t height,
           std::int64_t width, void* out, int threads) const;

 private:
  AlignedBuffer pack_weights(const std::int8_t* weight) const;
  AlignedBuffer pad_input(const void* x, bool x_is_signed, std::int64_t batch, std::int64_t height,
                          std::int64_t width, int threads) const;

  Shape shape_;
  OutputType output_type_;
  ConvKernel kernel_;
  int padded_in_channels_;
  int vectors_;  // of output channels
  AlignedBuffer weights_;
  std::vector<std::int32_t> bias_;           // padded to whole vectors, like the multipliers
  std::vector<std::int32_t> bias_for_int8_;  // makes up for the shift of int8 inputs to uint8
  std::vector<std::int32_t> multiplier_;
  Requantization requantization_;
};

}  // namespace pycodec

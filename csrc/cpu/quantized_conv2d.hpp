// The integer convolution. pycodec/ops/quantized_conv2d.py is its definition.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/activation_frame.hpp"
#include "cpu/aligned_buffer.hpp"
#include "cpu/quantized_conv2d_kernel.hpp"
#include "cpu/spans.hpp"

namespace pycodec {

// A layer whose weights are packed once, for the SIMD level in force at the time, and run often.
// Immutable, so several threads may run one layer at the same time.
class QuantizedConv2d {
 public:
  struct Shape {
    int out_channels, kernel_height, kernel_width, in_channels;
    int stride = 1;
    int upscale = 1;
  };

  struct Output {
    OutputType type;
    std::int32_t lower, upper;  // what is clamped to
  };

  // Where outputs go: channels of a position are dense. With `upscale` a position is what it was
  // spread to, so rows have more of them.
  struct Target {
    std::uint8_t* data;
    OutputType type;
    std::int64_t position_bytes, row_bytes, image_bytes;
    const std::int16_t* residual;  // dense, as many as outputs (upscale is 1 then); may be null
  };

  // weight: [out_channels][kernel_height][kernel_width][in_channels], all in the range of int8
  // unless wide; bias and multiplier: one a channel; zero_point: what the input is outside the
  // picture, one a channel, or empty for 0. Throws std::invalid_argument for even kernels, empty
  // dimensions, shifts outside 1..62, strides other than 1 and 2, and channels that do not make up
  // patches of upscale by upscale.
  QuantizedConv2d(const Shape& shape, const std::int16_t* weight, bool wide,
                  const std::int32_t* bias, const std::int32_t* multiplier, int shift,
                  const Output& output, std::vector<std::int16_t> zero_point);

  const Shape& shape() const { return shape_; }
  const Output& output() const { return output_; }
  const std::vector<std::int16_t>& zero_point() const { return zero_point_; }
  const char* simd_level() const { return kernel_.name; }
  // What a run on such an input does, for profiling.
  SpanWork work(const FrameShape& input) const;
  std::int64_t out_size(std::int64_t size) const { return (size - 1) / shape_.stride + 1; }

  // x: dense [batch][height][width][in_channels]; residual: int16 like out, or null; out: dense
  // [batch][out_height * upscale][out_width * upscale][out_channels / upscale^2].
  void run(const void* x, InputType type, std::int64_t batch, std::int64_t height,
           std::int64_t width, const std::int16_t* residual, void* out, int threads) const;

  // The same for an input in a frame of this shape, for which frame_bytes() were allocated.
  FrameShape frame_shape(InputType type, std::int64_t batch, std::int64_t height,
                         std::int64_t width) const;
  std::size_t frame_bytes(const FrameShape& frame) const;
  void run_frame(const std::uint8_t* data, const FrameShape& frame, const Target& target,
                 int threads) const;
  // The dense target of a picture of this size.
  Target dense_target(void* out, const std::int16_t* residual, std::int64_t height,
                      std::int64_t width) const;

 private:
  int row_groups() const;
  std::int64_t weight_plane_bytes() const;
  AlignedBuffer pack_weights(const std::int16_t* weight) const;

  Shape shape_;
  Output output_;
  ConvKernel kernel_;
  int padded_in_channels_;
  int vectors_;        // of output channels
  int weight_planes_;  // see ConvLayer
  AlignedBuffer weights_;
  std::vector<std::int32_t> bias_;           // padded to whole vectors, like the multipliers
  std::vector<std::int32_t> bias_for_int8_;  // makes up for what frames of bytes add to inputs
  std::vector<std::int32_t> bias_for_int16_;
  std::vector<std::int32_t> multiplier_;
  std::vector<std::int16_t> zero_point_;
  Requantization requantization_;
};

// The range of a type, or from 0 with a ReLU.
QuantizedConv2d::Output full_range(OutputType type, bool relu);

}  // namespace pycodec

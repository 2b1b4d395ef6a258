#include "cpu/quantized_conv2d.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

#include "cpu/integer_division.hpp"
#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

constexpr std::size_t kPatchBytes = 96 * 1024;  // of outputs before they are spread to patches

const ConvKernel& kernel_for(SimdLevel level, bool wide) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAmx:
      return kConvKernelAmx;
    case SimdLevel::kAvx512Vnni:
      return wide ? kConvKernelAvx512VnniWide : kConvKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kConvKernelAvx2;
#endif
    default:
      static_cast<void>(wide);  // all others read weights of both kinds
      return kConvKernelScalar;
  }
}

const QuantizedConv2d::Shape& checked(const QuantizedConv2d::Shape& shape) {
  if (shape.out_channels < 1 || shape.in_channels < 1) {
    throw std::invalid_argument("a convolution needs at least one input and one output channel");
  }
  if (shape.kernel_height % 2 != 1 || shape.kernel_width % 2 != 1) {
    throw std::invalid_argument("the kernel's height and width must be odd");
  }
  if (shape.stride != 1 && shape.stride != 2) {
    throw std::invalid_argument("the stride must be 1 or 2");
  }
  if (shape.upscale < 1 || shape.upscale > 4 ||
      shape.out_channels % (shape.upscale * shape.upscale) != 0) {
    throw std::invalid_argument("upscale must be 1 to 4, its square a divisor of the channels");
  }
  return shape;
}

Requantization make_requantization(int shift, const QuantizedConv2d::Output& output) {
  if (shift < 1 || shift > 62) throw std::invalid_argument("the shift must be in 1..62");
  return {shift, output.lower, output.upper};
}

std::vector<std::int16_t> checked_zero_point(std::vector<std::int16_t> zero_point, int channels) {
  if (!zero_point.empty() && zero_point.size() != static_cast<std::size_t>(channels)) {
    throw std::invalid_argument("zero_point needs one value for each input channel");
  }
  return zero_point;
}

}  // namespace

QuantizedConv2d::Output full_range(OutputType type, bool relu) {
  const auto make = [&](auto limits) {
    const std::int32_t lower = limits.min();
    return QuantizedConv2d::Output{type, relu ? std::max(lower, 0) : lower, limits.max()};
  };
  switch (type) {
    case OutputType::kUint8:
      return make(std::numeric_limits<std::uint8_t>());
    case OutputType::kInt8:
      return make(std::numeric_limits<std::int8_t>());
    case OutputType::kInt16:
      return make(std::numeric_limits<std::int16_t>());
    default:
      return make(std::numeric_limits<std::int32_t>());
  }
}

QuantizedConv2d::QuantizedConv2d(const Shape& shape, const std::int16_t* weight, bool wide,
                                 const std::int32_t* bias, const std::int32_t* multiplier,
                                 int shift, const Output& output,
                                 std::vector<std::int16_t> zero_point)
    : shape_(checked(shape)),
      output_(output),
      kernel_(kernel_for(pycodec::simd_level(), wide)),
      padded_in_channels_(round_up(shape.in_channels, kernel_.group)),
      vectors_(round_up(shape.out_channels, kernel_.lanes) / kernel_.lanes),
      weight_planes_(wide && kernel_.value_bytes == 1 ? 2 : 1),
      weights_(pack_weights(weight)),
      bias_(bias, bias + shape.out_channels),
      multiplier_(multiplier, multiplier + shape.out_channels),
      zero_point_(checked_zero_point(std::move(zero_point), shape.in_channels)),
      requantization_(make_requantization(shift, output)) {
  const std::int64_t window =
      std::int64_t{shape.kernel_height} * shape.kernel_width * shape.in_channels;
  for (int c = 0; c < shape.out_channels; ++c) {
    std::uint32_t sum = 0;
    for (std::int64_t i = 0; i < window; ++i) {
      sum += static_cast<std::uint32_t>(std::int32_t{weight[c * window + i]});
    }
    const auto bias_bits = static_cast<std::uint32_t>(bias[c]);
    bias_for_int8_.push_back(static_cast<std::int32_t>(bias_bits - (sum << 7)));
    bias_for_int16_.push_back(static_cast<std::int32_t>(bias_bits - (sum << 15)));
  }
  const std::size_t padded = static_cast<std::size_t>(vectors_) * kernel_.lanes;
  for (auto* values : {&bias_, &bias_for_int8_, &bias_for_int16_, &multiplier_}) {
    values->resize(padded, 0);
  }
}

// Groups of channels in a window row, with those that fill it up.
int QuantizedConv2d::row_groups() const {
  const int bytes = shape_.kernel_width * padded_in_channels_ * kernel_.value_bytes;
  return round_up(bytes, kernel_.row_bytes) / (kernel_.group * kernel_.value_bytes);
}

std::int64_t QuantizedConv2d::weight_plane_bytes() const {
  return std::int64_t{vectors_} * kernel_.lanes * shape_.kernel_height * row_groups() *
         kernel_.group * kernel_.value_bytes;
}

AlignedBuffer QuantizedConv2d::pack_weights(const std::int16_t* weight) const {
  const int row_values = row_groups() * kernel_.group;
  const std::int64_t plane = weight_plane_bytes();
  AlignedBuffer packed(static_cast<std::size_t>(weight_planes_ * plane));
  std::uint8_t* next = packed.data();
  const auto put = [&](std::int16_t w) {
    if (kernel_.value_bytes == 2) {
      std::memcpy(next, &w, sizeof w);
      next += sizeof w;
      return;
    }
    if (weight_planes_ == 2) next[plane] = static_cast<std::uint8_t>(w);
    *next++ = static_cast<std::uint8_t>(weight_planes_ == 2 ? w >> 8 : w);
  };
  for (int first = 0, chunk; first < vectors_; first += chunk) {
    chunk = chunk_vectors(first, vectors_, kernel_.max_chunk_vectors);
    for (int row = 0; row < shape_.kernel_height; ++row) {
      for (int value = 0; value < row_values; value += kernel_.group) {
        const int column = value / padded_in_channels_;
        const int first_in = value % padded_in_channels_;
        for (int out = first * kernel_.lanes; out < (first + chunk) * kernel_.lanes; ++out) {
          for (int in = first_in; in < first_in + kernel_.group; ++in) {
            const bool inside = out < shape_.out_channels && column < shape_.kernel_width &&
                                in < shape_.in_channels;
            const std::int64_t place =
                ((std::int64_t{out} * shape_.kernel_height + row) * shape_.kernel_width + column) *
                    shape_.in_channels +
                in;
            put(inside ? weight[place] : std::int16_t{0});
          }
        }
      }
    }
  }
  return packed;
}

FrameShape QuantizedConv2d::frame_shape(InputType type, std::int64_t batch, std::int64_t height,
                                        std::int64_t width) const {
  return {batch,
          height,
          width,
          shape_.kernel_height / 2,
          shape_.kernel_width / 2,
          shape_.in_channels,
          padded_in_channels_,
          kernel_.value_bytes,
          type};
}

std::size_t QuantizedConv2d::frame_bytes(const FrameShape& frame) const {
  // Kernels may read, but do not use, what follows the last window.
  const std::size_t beyond =
      (kernel_.tile_in_row ? 32 : 0) * shape_.stride * frame.pixel_bytes() + kernel_.row_bytes;
  return frame.planes() * frame.plane_bytes() + beyond;
}

QuantizedConv2d::Target QuantizedConv2d::dense_target(void* out, const std::int16_t* residual,
                                                      std::int64_t height,
                                                      std::int64_t width) const {
  const int area = shape_.upscale * shape_.upscale;
  const std::int64_t position =
      std::int64_t{shape_.out_channels} / area * output_bytes(output_.type);
  const std::int64_t row = out_size(width) * shape_.upscale * position;
  return {static_cast<std::uint8_t*>(out),         output_.type, position, row,
          out_size(height) * shape_.upscale * row, residual};
}

void QuantizedConv2d::run(const void* x, InputType type, std::int64_t batch, std::int64_t height,
                          std::int64_t width, const std::int16_t* residual, void* out,
                          int threads) const {
  if (batch == 0 || height == 0 || width == 0) return;
  const FrameShape frame = frame_shape(type, batch, height, width);
  const FrameWriter writer(frame, zero_point_);
  AlignedBuffer padded(frame_bytes(frame));
  const std::int64_t padded_height = height + 2 * frame.margin_y;
  const std::int64_t source_row = width * shape_.in_channels * (type == InputType::kInt16 ? 2 : 1);
  parallel_for(batch * padded_height, threads, [&](std::int64_t row) {
    const std::int64_t y = row % padded_height - frame.margin_y;
    const bool inside = y >= 0 && y < height;
    const auto* source =
        static_cast<const std::uint8_t*>(x) + (row / padded_height * height + y) * source_row;
    writer.write_row(padded.data(), row, inside ? source : nullptr);
  });
  run_frame(padded.data(), frame, dense_target(out, residual, height, width), threads);
}

SpanWork QuantizedConv2d::work(const FrameShape& input) const {
  const std::int64_t positions = input.batch * out_size(input.height) * out_size(input.width);
  const std::int64_t weights = std::int64_t{shape_.out_channels} * shape_.kernel_height *
                               shape_.kernel_width * shape_.in_channels;
  const std::int64_t inputs = input.batch * input.height * input.width * shape_.in_channels;
  const std::int64_t outputs = positions * shape_.out_channels;
  const int input_bytes = input.type == InputType::kInt16 ? 2 : 1;
  const bool is_tiled = std::strcmp(kernel_.name, "amx") == 0;
  return {inputs * input_bytes + weights + outputs * output_bytes(output_.type),
          2 * weights * positions, is_tiled ? Arithmetic::kInt8Tiles : Arithmetic::kInt8};
}

void QuantizedConv2d::run_frame(const std::uint8_t* data, const FrameShape& frame,
                                const Target& target, int threads) const {
  const std::vector<std::int32_t>* bias = &bias_;
  if (kernel_.value_bytes == 1 && frame.type == InputType::kInt8) bias = &bias_for_int8_;
  if (kernel_.value_bytes == 1 && frame.type == InputType::kInt16) bias = &bias_for_int16_;
  const ConvLayer layer = {shape_.out_channels, vectors_,        shape_.kernel_height, row_groups(),
                           weights_.data(),     weight_planes_,  weight_plane_bytes(), bias->data(),
                           multiplier_.data(),  requantization_, target.type};

  std::int64_t batch = frame.batch, height = out_size(frame.height), width = out_size(frame.width);
  const std::int64_t upscale = shape_.upscale;
  const std::int64_t channel_bytes = output_bytes(target.type);
  const std::int64_t patch_bytes = shape_.out_channels * channel_bytes;
  const bool dense = shape_.kernel_height == 1 && shape_.kernel_width == 1 && shape_.stride == 1 &&
                     upscale == 1 && target.row_bytes == width * target.position_bytes &&
                     target.image_bytes == height * target.row_bytes;
  if (dense) {  // all is one row
    width *= batch * height;
    batch = height = 1;
  }
  std::int64_t tile_positions = kernel_.tile_positions;
  if (upscale > 1) {
    const auto fit = static_cast<std::int64_t>(kPatchBytes) / patch_bytes / 8 * 8;
    tile_positions = std::max<std::int64_t>(8, std::min(tile_positions, fit));
  }
  // Units of work are parts of rows, or parts of the sequence of all positions.
  const std::int64_t run = kernel_.tile_in_row ? width : batch * height * width;
  const std::int64_t runs = kernel_.tile_in_row ? batch * height : 1;
  const std::int64_t tiles_in_run = (run + tile_positions - 1) / tile_positions;

  parallel_for(runs * tiles_in_run, threads, [&](std::int64_t t) {
    constexpr int kMaxPositions = 256;
    const std::uint8_t* windows[kMaxPositions];
    std::uint8_t* outs[kMaxPositions];
    const std::int16_t* residuals[kMaxPositions];
    static thread_local std::vector<std::uint8_t> patches;
    const std::int64_t in_run = t % tiles_in_run * tile_positions;
    const std::int64_t first = t / tiles_in_run * run + in_run;
    const int count = static_cast<int>(std::min(tile_positions, run - in_run));
    if (upscale > 1) patches.resize(count * patch_bytes);

    std::int64_t x = first % width, y = first / width % height, image = first / width / height;
    const auto place = [&] {
      return target.data + image * target.image_bytes + y * upscale * target.row_bytes +
             x * upscale * target.position_bytes;
    };
    const auto advance = [&] {
      if (++x < width) return;
      x = 0;
      if (++y < height) return;
      y = 0;
      ++image;
    };
    for (int i = 0; i < count; ++i, advance()) {
      windows[i] = data + frame.offset(image, y * shape_.stride, x * shape_.stride);
      outs[i] = upscale > 1 ? patches.data() + i * patch_bytes : place();
      if (target.residual) residuals[i] = target.residual + (first + i) * shape_.out_channels;
    }
    kernel_.run(layer, {windows, count, frame.row_bytes(), frame.planes(), frame.plane_bytes(),
                        outs, target.residual ? residuals : nullptr});
    if (upscale == 1) return;
    const std::int64_t run_bytes = patch_bytes / upscale;  // of one row of a patch
    x = first % width, y = first / width % height, image = first / width / height;
    for (int i = 0; i < count; ++i, advance()) {
      for (std::int64_t dy = 0; dy < upscale; ++dy) {
        std::memcpy(place() + dy * target.row_bytes, outs[i] + dy * run_bytes,
                    static_cast<std::size_t>(run_bytes));
      }
    }
  });
}

}  // namespace pycodec

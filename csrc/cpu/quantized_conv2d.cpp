#include "cpu/quantized_conv2d.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/parallel.hpp"
#include "cpu/simd_level.hpp"

namespace pycodec {
namespace {

// Positions in a unit of work: a multiple of every register tile (8 and 6), few enough for the
// windows of neighbouring positions to stay in the first-level cache while all output channels are
// computed.
constexpr int kTilePositions = 24;

const ConvKernel& kernel_for(SimdLevel level) {
  switch (level) {
#if defined(__x86_64__)
    case SimdLevel::kAvx512Vnni:
      return kConvKernelAvx512Vnni;
    case SimdLevel::kAvx2:
      return kConvKernelAvx2;
#endif
    default:
      return kConvKernelScalar;
  }
}

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

const QuantizedConv2d::Shape& checked(const QuantizedConv2d::Shape& shape) {
  if (shape.out_channels < 1 || shape.in_channels < 1) {
    throw std::invalid_argument("a convolution needs at least one input and one output channel");
  }
  if (shape.kernel_height % 2 != 1 || shape.kernel_width % 2 != 1) {
    throw std::invalid_argument("the kernel's height and width must be odd");
  }
  return shape;
}

template <class T>
Requantization range_of(int shift, bool relu) {
  const std::int32_t lower = std::numeric_limits<T>::min();
  return {shift, relu ? std::max(lower, 0) : lower, std::numeric_limits<T>::max()};
}

Requantization make_requantization(int shift, OutputType type, bool relu) {
  if (shift < 1 || shift > 62) throw std::invalid_argument("the shift must be in 1..62");
  switch (type) {
    case OutputType::kUint8:
      return range_of<std::uint8_t>(shift, relu);
    case OutputType::kInt8:
      return range_of<std::int8_t>(shift, relu);
    case OutputType::kInt16:
      return range_of<std::int16_t>(shift, relu);
    default:
      return range_of<std::int32_t>(shift, relu);
  }
}

// Copies one pixel row, converting the values and filling up the channels of every pixel.
template <class From, class To, class Convert>
void copy_row(const From* from, To* to, std::int64_t width, int channels, int padded_channels,
              To zero, Convert convert) {
  if (channels == padded_channels) {
    std::transform(from, from + width * channels, to, convert);
    return;
  }
  for (std::int64_t x = 0; x < width; ++x, from += channels, to += padded_channels) {
    std::transform(from, from + channels, to, convert);
    std::fill(to + channels, to + padded_channels, zero);
  }
}

}  // namespace

QuantizedConv2d::QuantizedConv2d(const Shape& shape, const std::int8_t* weight,
                                 const std::int32_t* bias, const std::int32_t* multiplier,
                                 int shift, OutputType output_type, bool relu)
    : shape_(checked(shape)),
      output_type_(output_type),
      kernel_(kernel_for(pycodec::simd_level())),
      padded_in_channels_(round_up(shape.in_channels, kernel_.group)),
      vectors_(round_up(shape.out_channels, kernel_.lanes) / kernel_.lanes),
      weights_(pack_weights(weight)),
      bias_(bias, bias + shape.out_channels),
      multiplier_(multiplier, multiplier + shape.out_channels),
      requantization_(make_requantization(shift, output_type, relu)) {
  const std::int64_t window =
      std::int64_t{shape.kernel_height} * shape.kernel_width * shape.in_channels;
  for (int c = 0; c < shape.out_channels; ++c) {
    std::uint32_t sum = 0;
    for (std::int64_t i = 0; i < window; ++i) {
      sum += static_cast<std::uint32_t>(std::int32_t{weight[c * window + i]});
    }
    bias_for_int8_.push_back(
        static_cast<std::int32_t>(static_cast<std::uint32_t>(bias[c]) - 128 * sum));
  }
  const std::size_t padded = static_cast<std::size_t>(vectors_) * kernel_.lanes;
  for (auto* values : {&bias_, &bias_for_int8_, &multiplier_}) values->resize(padded, 0);
}

AlignedBuffer QuantizedConv2d::pack_weights(const std::int8_t* weight) const {
  const int taps = shape_.kernel_height * shape_.kernel_width;
  const int groups = padded_in_channels_ / kernel_.group;
  const std::int64_t channel_stride = std::int64_t{taps} * shape_.in_channels;
  AlignedBuffer packed(std::size_t(vectors_) * kernel_.lanes * taps * padded_in_channels_ *
                       kernel_.value_bytes);
  auto* out8 = reinterpret_cast<std::int8_t*>(packed.data());
  auto* out16 = reinterpret_cast<std::int16_t*>(packed.data());
  const auto put = [&](std::int8_t w) { kernel_.value_bytes == 1 ? * out8++ = w : * out16++ = w; };
  for (int first = 0, chunk; first < vectors_; first += chunk) {
    chunk = chunk_vectors(first, vectors_, kernel_.max_chunk_vectors);
    for (int tap_and_group = 0; tap_and_group < taps * groups; ++tap_and_group) {
      const int tap = tap_and_group / groups;
      const int first_in = tap_and_group % groups * kernel_.group;
      for (int out = first * kernel_.lanes; out < (first + chunk) * kernel_.lanes; ++out) {
        for (int in = first_in; in < first_in + kernel_.group; ++in) {
          const bool inside = out < shape_.out_channels && in < shape_.in_channels;
          put(inside ? weight[out * channel_stride + tap * shape_.in_channels + in] : 0);
        }
      }
    }
  }
  return packed;
}

AlignedBuffer QuantizedConv2d::pad_input(const void* x, bool x_is_signed, std::int64_t batch,
                                         std::int64_t height, std::int64_t width,
                                         int threads) const {
  const int top = shape_.kernel_height / 2;
  const int left = shape_.kernel_width / 2;
  const std::int64_t padded_height = height + 2 * top;
  const std::int64_t row_values = (width + 2 * left) * padded_in_channels_;
  const std::int64_t margin = std::int64_t{left} * padded_in_channels_;
  AlignedBuffer padded(std::size_t(batch * padded_height * row_values) * kernel_.value_bytes);

  const auto fill_row = [&](auto* row, const auto* source, auto zero, auto convert) {
    if (source == nullptr) {
      std::fill(row, row + row_values, zero);
      return;
    }
    std::fill(row, row + margin, zero);
    copy_row(source, row + margin, width, shape_.in_channels, padded_in_channels_, zero, convert);
    std::fill(row + row_values - margin, row + row_values, zero);
  };
  parallel_for(batch * padded_height, threads, [&](std::int64_t r) {
    const std::int64_t y = r % padded_height - top;
    const std::int64_t offset =
        (r / padded_height * height + y) * width * std::int64_t{shape_.in_channels};
    const bool inside = y >= 0 && y < height;
    const auto* source8 = inside ? static_cast<const std::int8_t*>(x) + offset : nullptr;
    const auto* source_u8 = reinterpret_cast<const std::uint8_t*>(source8);
    if (kernel_.value_bytes == 1) {
      const std::uint8_t zero = x_is_signed ? 128 : 0;
      fill_row(padded.data() + r * row_values, source_u8, zero,
               [zero](std::uint8_t v) { return static_cast<std::uint8_t>(v ^ zero); });
      return;
    }
    auto* row = reinterpret_cast<std::int16_t*>(padded.data()) + r * row_values;
    const auto widen = [](auto v) { return std::int16_t{v}; };
    if (x_is_signed) {
      fill_row(row, source8, std::int16_t{0}, widen);
    } else {
      fill_row(row, source_u8, std::int16_t{0}, widen);
    }
  });
  return padded;
}

void QuantizedConv2d::run(const void* x, bool x_is_signed, std::int64_t batch, std::int64_t height,
                          std::int64_t width, void* out, int threads) const {
  const AlignedBuffer padded = pad_input(x, x_is_signed, batch, height, width, threads);
  const std::int64_t pixel_bytes = std::int64_t{padded_in_channels_} * kernel_.value_bytes;
  const std::int64_t row_stride = (width + shape_.kernel_width - 1) * pixel_bytes;
  const std::int64_t image_stride = (height + shape_.kernel_height - 1) * row_stride;
  const bool shifted = x_is_signed && kernel_.value_bytes == 1;
  const ConvLayer layer = {
      shape_.out_channels,  vectors_,
      shape_.kernel_height, shape_.kernel_width * padded_in_channels_ / kernel_.group,
      weights_.data(),      (shifted ? bias_for_int8_ : bias_).data(),
      multiplier_.data(),   requantization_,
      output_type_};

  const std::int64_t positions = batch * height * width;
  const std::int64_t tiles = (positions + kTilePositions - 1) / kTilePositions;
  parallel_for(tiles, threads, [&](std::int64_t t) {
    const std::int64_t first = t * kTilePositions;
    const int count = static_cast<int>(std::min<std::int64_t>(kTilePositions, positions - first));
    const std::uint8_t* windows[kTilePositions];
    for (int i = 0; i < count; ++i) {
      const std::int64_t p = first + i;
      windows[i] = padded.data() + p / (width * height) * image_stride +
                   p / width % height * row_stride + p % width * pixel_bytes;
    }
    auto* tile_out =
        static_cast<std::uint8_t*>(out) + first * shape_.out_channels * output_bytes(output_type_);
    kernel_.run(layer, {windows, count, row_stride, tile_out});
  });
}

}  // namespace pycodec

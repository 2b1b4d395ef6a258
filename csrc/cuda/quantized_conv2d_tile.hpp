// What a block of threads does in the kernel of quantized_conv2d.cu: an implicit matrix product.
// Rows are output positions, columns output channels, and the inner dimension runs over kernel taps
// and, within a tap, words of four input channels. A block computes kConvTile x kConvTile outputs,
// a thread 4 x 4 of them, with dp4a: four products and their sum, exact in 32 bits. Inputs and
// weights pass through shared memory kConvDepth words at a time; those of 16 bits as a word of high
// bytes and one of low bytes, whose products are shifted and added up. block.hpp says how the code
// is written.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/block.hpp"
#include "cuda/int8.hpp"
#include "cuda/quantized_conv2d.hpp"

namespace pycodec::cuda {

constexpr int kConvTile = 64;  // positions and output channels in a block
constexpr int kConvDepth = 8;  // words of four channels in shared memory
constexpr int kConvSide = 16;  // threads along each side of a block
constexpr int kConvThreads = kConvSide * kConvSide;
constexpr int kConvPerThread = kConvTile / kConvSide;

// A column more than needed, so that threads which read a column meet different banks.
template <int kXPlanes, int kWeightBits>
struct QuantizedConv2dShared {
  static constexpr int kWeightPlanes = kWeightBits == 16 ? 2 : 1;
  std::uint32_t x[kXPlanes][kConvTile][kConvDepth + 1];
  std::uint32_t weight[kWeightPlanes][kConvTile][kConvDepth + 1];
};

PYCODEC_HOST_DEVICE inline std::int32_t times_256(std::int32_t value) {
  return static_cast<std::int32_t>(static_cast<std::uint32_t>(value) << 8);
}

// Four values from `first` on, of which `count` exist, the others are 0: their bytes, or of int16
// the high bytes as plane 0 and the low ones as plane 1.
template <int kPlanes>
PYCODEC_HOST_DEVICE inline void load_words(const void* values, std::int64_t first, int count,
                                           bool aligned, std::uint32_t (&words)[kPlanes]) {
  if constexpr (kPlanes == 1) {
    words[0] = load_word(static_cast<const std::int8_t*>(values) + first, count, aligned);
  } else {
    const auto* const wide = static_cast<const std::uint16_t*>(values) + first;
    words[0] = words[1] = 0;
    for (int i = 0; i < 4 && i < count; ++i) {
      words[0] |= static_cast<std::uint32_t>(wide[i] >> 8) << (8 * i);
      words[1] |= static_cast<std::uint32_t>(wide[i] & 255) << (8 * i);
    }
  }
}

// Four weights of 4 bits as int8.
PYCODEC_HOST_DEVICE inline std::uint32_t load_packed(const void* values, std::int64_t first_byte,
                                                     int count) {
  const auto* const bytes = static_cast<const std::uint8_t*>(values) + first_byte;
  std::uint32_t word = 0;
  for (int i = 0; i < 4 && i < count; ++i) {
    const int nibble = bytes[i / 2] >> (i % 2 * 4) & 15;
    word |= static_cast<std::uint32_t>(((nibble ^ 8) - 8) & 255) << (8 * i);
  }
  return word;
}

// `sum` and four products; x and weight are words of one plane or two.
template <bool kSigned, int kXPlanes, int kWeightPlanes>
PYCODEC_HOST_DEVICE inline std::int32_t dot4_planes(const std::uint32_t (&x)[kXPlanes],
                                                    const std::uint32_t (&weight)[kWeightPlanes],
                                                    std::int32_t sum) {
  if constexpr (kXPlanes == 1 && kWeightPlanes == 1) {
    return kSigned ? dot4(x[0], weight[0], sum) : dot4_unsigned(x[0], weight[0], sum);
  } else if constexpr (kWeightPlanes == 1) {
    return dot4_unsigned(x[1], weight[0], add(sum, times_256(dot4(x[0], weight[0], 0))));
  } else if constexpr (kXPlanes == 1) {
    const std::int32_t high =
        kSigned ? dot4(x[0], weight[0], 0) : dot4_unsigned(x[0], weight[0], 0);
    return dot4_by_unsigned<kSigned>(x[0], weight[1], add(sum, times_256(high)));
  } else {
    std::int32_t high = times_256(dot4(x[0], weight[0], 0));
    high = dot4_by_unsigned<true>(x[0], weight[1], dot4_unsigned(x[1], weight[0], high));
    return dot4_by_unsigned<false>(x[1], weight[1], add(sum, times_256(high)));
  }
}

PYCODEC_HOST_DEVICE inline void store_output(void* out, std::int64_t index, int bytes,
                                             std::int32_t value) {
  switch (bytes) {
    case 4:
      static_cast<std::int32_t*>(out)[index] = value;
      break;
    case 2:
      static_cast<std::int16_t*>(out)[index] = static_cast<std::int16_t>(value);
      break;
    default:
      static_cast<std::uint8_t*>(out)[index] = static_cast<std::uint8_t>(value);
  }
}

// Where in `out` is channel `out_channel` of a position? Positions are unsigned or of 64 bits.
template <class Position>
PYCODEC_HOST_DEVICE inline std::int64_t output_index(const QuantizedConv2dArguments& a,
                                                     Position position, int out_channel) {
  if (a.upscale == 1) return std::int64_t{position} * a.out_channels + out_channel;
  const auto width = static_cast<Position>(a.out_width());
  const int channels = a.out_channels / (a.upscale * a.upscale);
  const int patch = out_channel / channels;
  const Position line = position / width;  // of all images
  const std::int64_t y = std::int64_t{line} * a.upscale + patch / a.upscale;
  const std::int64_t x = std::int64_t{position - line * width} * a.upscale + patch % a.upscale;
  return (y * width * a.upscale + x) * channels + out_channel % channels;
}

// Requantizes the sum of the products of one output and writes it.
template <class Position>
PYCODEC_HOST_DEVICE inline void store_sum(const QuantizedConv2dArguments& a, Position position,
                                          int out_channel, std::int32_t sum) {
  const std::int64_t place = std::int64_t{position} * a.out_channels + out_channel;
  sum = add(sum, a.bias[out_channel]);
  const bool negative = sum < 0 && a.negative_multiplier != nullptr;
  std::int64_t value = std::int64_t{1} << (a.shift - 1);
  value += std::int64_t{sum} *
           (negative ? a.negative_multiplier[out_channel] : a.multiplier[out_channel]);
  if (a.scaled_residual != nullptr) {
    value += std::int64_t{a.scaled_residual[place]} * a.residual_multiplier[out_channel];
  }
  value >>= a.shift;
  if (a.residual != nullptr) value += a.residual[place];
  if (value < a.lower) value = a.lower;
  if (value > a.upper) value = a.upper;
  store_output(a.out, output_index(a, position, out_channel), a.out_bytes,
               static_cast<std::int32_t>(value));
}

template <class Block, bool kSigned, int kXPlanes, int kWeightBits>
PYCODEC_DEVICE void quantized_conv2d_block(const QuantizedConv2dArguments& a, std::int64_t block_x,
                                           int block_y,
                                           QuantizedConv2dShared<kXPlanes, kWeightBits>& shared) {
  constexpr int kWeightPlanes = QuantizedConv2dShared<kXPlanes, kWeightBits>::kWeightPlanes;
  const std::int64_t out_height = a.out_height(), out_width = a.out_width();
  const std::int64_t positions = a.batch * out_height * out_width;
  const std::int64_t first_position = block_x * kConvTile;
  const int first_out = block_y * kConvTile;
  const int words = (a.in_channels + 3) / 4;
  const int taps = a.kernel_height * a.kernel_width;
  const bool aligned = a.in_channels % 4 == 0 && reinterpret_cast<std::uintptr_t>(a.x) % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(a.weight) % 4 == 0;

  typename Block::template PerThread<std::int32_t[kConvPerThread][kConvPerThread]> acc;
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int i = 0; i < kConvPerThread; ++i) {
      PYCODEC_UNROLL
      for (int j = 0; j < kConvPerThread; ++j) acc[thread][i][j] = 0;
    }
  });
  for (int tap = 0; tap < taps; ++tap) {
    const int dy = tap / a.kernel_width - a.kernel_height / 2;
    const int dx = tap % a.kernel_width - a.kernel_width / 2;
    for (int first_word = 0; first_word < words; first_word += kConvDepth) {
      Block::each([&](int thread) {
        for (int i = thread; i < kConvTile * kConvDepth; i += kConvThreads) {
          const int row = i / kConvDepth;
          const int depth = i % kConvDepth;
          const int channel = (first_word + depth) * 4;
          const int left = a.in_channels - channel;  // at most 0 past the last word

          const std::int64_t position = first_position + row;
          const std::int64_t image = position / out_width / out_height;
          const std::int64_t source_y = position / out_width % out_height * a.stride + dy;
          const std::int64_t source_x = position % out_width * a.stride + dx;
          const bool inside =
              source_y >= 0 && source_y < a.height && source_x >= 0 && source_x < a.width;
          std::uint32_t x[kXPlanes] = {};
          if (position < positions && inside) {
            const std::int64_t pixel = (image * a.height + source_y) * a.width + source_x;
            load_words<kXPlanes>(a.x, pixel * a.in_channels + channel, left, aligned, x);
          } else if (position < positions && a.zero_point != nullptr) {
            std::uint32_t zero[2];
            load_words<2>(a.zero_point, channel, left, false, zero);
            x[kXPlanes - 1] = zero[1];
            if constexpr (kXPlanes == 2) x[0] = zero[0];
          }
          for (int plane = 0; plane < kXPlanes; ++plane) shared.x[plane][row][depth] = x[plane];

          const int out = first_out + row;
          const std::int64_t window = std::int64_t{out} * taps + tap;
          std::uint32_t weight[kWeightPlanes] = {};
          if (out < a.out_channels) {
            if constexpr (kWeightBits == 4) {
              const std::int64_t row_bytes = (a.in_channels + 1) / 2;
              weight[0] = load_packed(a.weight, window * row_bytes + channel / 2, left);
            } else {
              load_words<kWeightPlanes>(a.weight, window * a.in_channels + channel, left, aligned,
                                        weight);
            }
          }
          for (int plane = 0; plane < kWeightPlanes; ++plane) {
            shared.weight[plane][row][depth] = weight[plane];
          }
        }
      });
      Block::sync();
      Block::each([&](int thread) {
        const int along = thread / kConvSide;
        const int across = thread % kConvSide;
        for (int depth = 0; depth < kConvDepth; ++depth) {
          PYCODEC_UNROLL
          for (int i = 0; i < kConvPerThread; ++i) {
            std::uint32_t x[kXPlanes];
            PYCODEC_UNROLL
            for (int plane = 0; plane < kXPlanes; ++plane) {
              x[plane] = shared.x[plane][along + i * kConvSide][depth];
            }
            PYCODEC_UNROLL
            for (int j = 0; j < kConvPerThread; ++j) {
              std::uint32_t weight[kWeightPlanes];
              PYCODEC_UNROLL
              for (int plane = 0; plane < kWeightPlanes; ++plane) {
                weight[plane] = shared.weight[plane][across + j * kConvSide][depth];
              }
              std::int32_t& sum = acc[thread][i][j];
              sum = dot4_planes<kSigned, kXPlanes, kWeightPlanes>(x, weight, sum);
            }
          }
        }
      });
      Block::sync();
    }
  }

  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int j = 0; j < kConvPerThread; ++j) {
      const int out = first_out + thread % kConvSide + j * kConvSide;
      if (out >= a.out_channels) continue;
      PYCODEC_UNROLL
      for (int i = 0; i < kConvPerThread; ++i) {
        const std::int64_t position = first_position + thread / kConvSide + i * kConvSide;
        if (position < positions) store_sum(a, position, out, acc[thread][i][j]);
      }
    }
  });
}

// Calls run(kSigned, kXPlanes, kWeightBits), constants of the types that the arguments have.
template <class Run>
void dispatch_types(const QuantizedConv2dArguments& a, const Run& run) {
  const auto with_weight = [&](auto is_signed, auto planes) {
    switch (a.weight_bits) {
      case 4:
        return run(is_signed, planes, std::integral_constant<int, 4>());
      case 16:
        return run(is_signed, planes, std::integral_constant<int, 16>());
      default:
        return run(is_signed, planes, std::integral_constant<int, 8>());
    }
  };
  using One = std::integral_constant<int, 1>;
  if (a.x_bytes == 2) {
    with_weight(std::true_type(), std::integral_constant<int, 2>());
  } else if (a.x_is_signed) {
    with_weight(std::true_type(), One());
  } else {
    with_weight(std::false_type(), One());
  }
}

}  // namespace pycodec::cuda

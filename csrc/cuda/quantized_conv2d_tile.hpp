// What a block of threads does in the kernel of quantized_conv2d.cu: an implicit matrix product.
// Rows are output positions, columns output channels, and the inner dimension runs over kernel taps
// and, within a tap, words of four input channels. A block computes kConvTile x kConvTile outputs,
// a thread 4 x 4 of them, with dp4a: four products and their sum, exact in 32 bits. Inputs and
// weights pass through shared memory kConvDepth words at a time. block.hpp says how the code is
// written.
#pragma once

#include <cstdint>

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
struct QuantizedConv2dShared {
  std::uint32_t x[kConvTile][kConvDepth + 1];
  std::uint32_t weight[kConvTile][kConvDepth + 1];
};

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

template <class Block, bool kSigned>
PYCODEC_DEVICE void quantized_conv2d_block(const QuantizedConv2dArguments& a, std::int64_t block_x,
                                           int block_y, QuantizedConv2dShared& shared) {
  const auto* const x = static_cast<const std::int8_t*>(a.x);
  const std::int64_t positions = a.batch * a.height * a.width;
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
          const std::int64_t source_y = position / a.width % a.height + dy;
          const std::int64_t source_x = position % a.width + dx;
          const bool inside = position < positions && source_y >= 0 && source_y < a.height &&
                              source_x >= 0 && source_x < a.width;
          const std::int64_t pixel = position + dy * a.width + dx;
          shared.x[row][depth] =
              inside ? load_word(x + pixel * a.in_channels + channel, left, aligned) : 0;

          const int out = first_out + row;
          const std::int64_t window = std::int64_t{out} * taps + tap;
          shared.weight[row][depth] =
              out < a.out_channels
                  ? load_word(a.weight + window * a.in_channels + channel, left, aligned)
                  : 0;
        }
      });
      Block::sync();
      Block::each([&](int thread) {
        const int along = thread / kConvSide;
        const int across = thread % kConvSide;
        for (int depth = 0; depth < kConvDepth; ++depth) {
          PYCODEC_UNROLL
          for (int i = 0; i < kConvPerThread; ++i) {
            const std::uint32_t word = shared.x[along + i * kConvSide][depth];
            PYCODEC_UNROLL
            for (int j = 0; j < kConvPerThread; ++j) {
              const std::uint32_t weight = shared.weight[across + j * kConvSide][depth];
              std::int32_t& sum = acc[thread][i][j];
              sum = kSigned ? dot4(word, weight, sum) : dot4_unsigned(word, weight, sum);
            }
          }
        }
      });
      Block::sync();
    }
  }

  const std::int64_t half = std::int64_t{1} << (a.shift - 1);
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int j = 0; j < kConvPerThread; ++j) {
      const int out = first_out + thread % kConvSide + j * kConvSide;
      if (out >= a.out_channels) continue;
      PYCODEC_UNROLL
      for (int i = 0; i < kConvPerThread; ++i) {
        const std::int64_t position = first_position + thread / kConvSide + i * kConvSide;
        if (position >= positions) continue;
        const std::int32_t sum = add(acc[thread][i][j], a.bias[out]);
        std::int64_t value = (std::int64_t{sum} * a.multiplier[out] + half) >> a.shift;
        if (value < a.lower) value = a.lower;
        if (value > a.upper) value = a.upper;
        store_output(a.out, position * a.out_channels + out, a.out_bytes,
                     static_cast<std::int32_t>(value));
      }
    }
  });
}

}  // namespace pycodec::cuda

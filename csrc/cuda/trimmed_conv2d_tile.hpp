// What a block of threads does in the kernels of trimmed_conv2d.cu: an implicit matrix product of
// kPositions x kOut outputs, kThreadPositions x kThreadOut of them a thread, over the blocks of
// weights that its output group sees. Inputs and weights pass through shared memory.
//
// block.hpp says how the code is written.
#pragma once

#include <cstdint>

#include "cuda/block.hpp"
#include "cuda/int8.hpp"
#include "cuda/trimmed_conv2d.hpp"

namespace pycodec::cuda {

constexpr int kTrimmedThreads = 256;

template <int kPositions_, int kOut_, int kThreadPositions_, int kThreadOut_>
struct TrimmedTile {
  static constexpr int kPositions = kPositions_;
  static constexpr int kOut = kOut_;
  static constexpr int kThreadPositions = kThreadPositions_;
  static constexpr int kThreadOut = kThreadOut_;
  // Threads side by side have neighbouring positions, kPositions / kThreadPositions apart.
  static constexpr int kAlongPositions = kPositions / kThreadPositions;
  static_assert(kAlongPositions * (kOut / kThreadOut) == kTrimmedThreads);
  static_assert(kTrimmedThreads % kPositions == 0);
};

// For output groups of at least 17, of 9 to 16, and of up to 8 channels.
using WideTile = TrimmedTile<64, 64, 4, 4>;
using MiddleTile = TrimmedTile<128, 16, 4, 2>;
using NarrowTile = TrimmedTile<256, 8, 4, 2>;

// Calls f with the tile that suits the shape.
template <class Function>
void with_trimmed_tile(const TrimmedShape& shape, const Function& f) {
  const int width = shape.out_channels / shape.groups;
  if (width > 16) {
    f(WideTile{});
  } else if (width > 8) {
    f(MiddleTile{});
  } else {
    f(NarrowTile{});
  }
}

// What blocks of threads there are: x runs over positions, y over groups and their channels.
struct TrimmedGrid {
  std::int64_t x;
  int y;
};

template <class Tile>
TrimmedGrid trimmed_grid(const TrimmedShape& s, bool images_apart) {
  const std::int64_t area = s.height * s.width;
  const std::int64_t positions = images_apart ? area : s.batch * area;
  const std::int64_t blocks = (positions + Tile::kPositions - 1) / Tile::kPositions;
  const int width = s.out_channels / s.groups;
  return {images_apart ? s.batch * blocks : blocks,
          s.groups * ((width + Tile::kOut - 1) / Tile::kOut)};
}

// The output channels of a block of threads.
struct TrimmedChannels {
  int group, first, end;

  PYCODEC_HOST_DEVICE TrimmedChannels(const TrimmedShape& s, int block, int out_of_block) {
    const int width = s.out_channels / s.groups;
    const int blocks_of_group = (width + out_of_block - 1) / out_of_block;
    group = block / blocks_of_group;
    first = group * width + block % blocks_of_group * out_of_block;
    end = (group + 1) * width;
  }
};

template <class Accumulator, class Tile>
struct TrimmedShared {
  Accumulator x[kTrimmedDepth][Tile::kPositions];
  Accumulator weight[kTrimmedDepth][Tile::kOut];
};

template <class Block, class Element, class Accumulator, class Tile>
PYCODEC_DEVICE void trimmed_conv2d_block(const TrimmedConv2dArguments& a, std::int64_t block_x,
                                         int block_y, TrimmedShared<Accumulator, Tile>& shared) {
  const TrimmedShape& s = a.shape;
  const std::int64_t area = s.height * s.width;
  const std::int64_t blocks_of_image = (area + Tile::kPositions - 1) / Tile::kPositions;
  const std::int64_t image = block_x / blocks_of_image;
  const std::int64_t first_position = block_x % blocks_of_image * Tile::kPositions;
  const TrimmedChannels channels(s, block_y, Tile::kOut);
  const auto* const x = static_cast<const Element*>(a.x) + image * s.in_channels * area;
  const auto* const weight = static_cast<const Element*>(a.weight);
  const int blocks_of_tap = (s.in_channels + kTrimmedDepth - 1) / kTrimmedDepth;
  const std::int64_t taps = std::int64_t{s.kernel_height} * s.kernel_width;
  const std::int32_t* const list = a.shape.blocks + channels.group * taps * blocks_of_tap;
  const int count = s.counts[channels.group];

  typename Block::template PerThread<Accumulator[Tile::kThreadPositions][Tile::kThreadOut]> acc;
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int i = 0; i < Tile::kThreadPositions; ++i) {
      PYCODEC_UNROLL
      for (int j = 0; j < Tile::kThreadOut; ++j) acc[thread][i][j] = 0;
    }
  });
  for (int n = 0; n < count; ++n) {
    const int tap = list[n] / blocks_of_tap;
    const int first_channel = list[n] % blocks_of_tap * kTrimmedDepth;
    const int dy = tap / s.kernel_width - s.kernel_height / 2;
    const int dx = tap % s.kernel_width - s.kernel_width / 2;
    Block::each([&](int thread) {
      const int column = thread % Tile::kPositions;  // the thread's own, whatever the depth
      const std::int64_t position = first_position + column;
      const std::int64_t source_y = position / s.width + dy;
      const std::int64_t source_x = position % s.width + dx;
      const bool inside = position < area && source_y >= 0 && source_y < s.height &&
                          source_x >= 0 && source_x < s.width;
      const Element* const pixel = x + source_y * s.width + source_x;
      for (int depth = thread / Tile::kPositions; depth < kTrimmedDepth;
           depth += kTrimmedThreads / Tile::kPositions) {
        const int channel = first_channel + depth;
        shared.x[depth][column] = inside && channel < s.in_channels
                                      ? static_cast<Accumulator>(pixel[channel * area])
                                      : Accumulator{0};
      }
      for (int i = thread; i < kTrimmedDepth * Tile::kOut; i += kTrimmedThreads) {
        const int channel = first_channel + i / Tile::kOut;
        const int out = channels.first + i % Tile::kOut;
        const std::int64_t row = std::int64_t{tap} * s.in_channels + channel;
        shared.weight[i / Tile::kOut][i % Tile::kOut] =
            channel < s.in_channels && out < channels.end
                ? static_cast<Accumulator>(weight[row * s.out_channels + out])
                : Accumulator{0};
      }
    });
    Block::sync();
    Block::each([&](int thread) {
      const int along = thread % Tile::kAlongPositions;
      const int across = thread / Tile::kAlongPositions * Tile::kThreadOut;
      for (int depth = 0; depth < kTrimmedDepth; ++depth) {
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kThreadPositions; ++i) {
          const Accumulator value = shared.x[depth][along + i * Tile::kAlongPositions];
          PYCODEC_UNROLL
          for (int j = 0; j < Tile::kThreadOut; ++j) {
            acc[thread][i][j] += value * shared.weight[depth][across + j];
          }
        }
      }
    });
    Block::sync();
  }
  Block::each([&](int thread) {
    const int along = thread % Tile::kAlongPositions;
    const int across = thread / Tile::kAlongPositions * Tile::kThreadOut;
    PYCODEC_UNROLL
    for (int j = 0; j < Tile::kThreadOut; ++j) {
      const int out = channels.first + across + j;
      if (out >= channels.end) continue;
      const Accumulator bias =
          a.bias == nullptr ? Accumulator{0}
                            : static_cast<Accumulator>(static_cast<const Element*>(a.bias)[out]);
      PYCODEC_UNROLL
      for (int i = 0; i < Tile::kThreadPositions; ++i) {
        const std::int64_t position = first_position + along + i * Tile::kAlongPositions;
        if (position >= area) continue;
        static_cast<Element*>(a.out)[(image * s.out_channels + out) * area + position] =
            static_cast<Element>(acc[thread][i][j] + bias);
      }
    }
  });
}

// Words of four channels; a column more than needed, so that threads which read a column meet
// different banks.
template <class Tile>
struct QuantizedTrimmedShared {
  std::uint32_t x[Tile::kPositions][kTrimmedWords + 1];
  std::uint32_t weight[Tile::kOut][kTrimmedWords + 1];
};

template <class Block, class Tile>
PYCODEC_DEVICE void quantized_trimmed_conv2d_block(const QuantizedTrimmedConv2dArguments& a,
                                                   std::int64_t block_x, int block_y,
                                                   QuantizedTrimmedShared<Tile>& shared) {
  const TrimmedShape& s = a.shape;
  const std::int64_t positions = s.batch * s.height * s.width;
  const std::int64_t first_position = block_x * Tile::kPositions;
  const TrimmedChannels channels(s, block_y, Tile::kOut);
  constexpr int kChannels = 4 * kTrimmedWords;  // of a block of weights
  const int blocks_of_tap = (s.in_channels + kChannels - 1) / kChannels;
  const int taps = s.kernel_height * s.kernel_width;
  const std::int32_t* const list = s.blocks + std::int64_t{channels.group} * taps * blocks_of_tap;
  const int count = s.counts[channels.group];
  const bool aligned = s.in_channels % 4 == 0 && reinterpret_cast<std::uintptr_t>(a.x) % 4 == 0 &&
                       reinterpret_cast<std::uintptr_t>(a.weight) % 4 == 0;

  typename Block::template PerThread<std::int32_t[Tile::kThreadPositions][Tile::kThreadOut]> acc;
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int i = 0; i < Tile::kThreadPositions; ++i) {
      PYCODEC_UNROLL
      for (int j = 0; j < Tile::kThreadOut; ++j) acc[thread][i][j] = 0;
    }
  });
  for (int n = 0; n < count; ++n) {
    const int tap = list[n] / blocks_of_tap;
    const int first_channel = list[n] % blocks_of_tap * kChannels;
    const int dy = tap / s.kernel_width - s.kernel_height / 2;
    const int dx = tap % s.kernel_width - s.kernel_width / 2;
    Block::each([&](int thread) {
      for (int i = thread; i < Tile::kPositions * kTrimmedWords; i += kTrimmedThreads) {
        const int channel = first_channel + i % kTrimmedWords * 4;
        const std::int64_t position = first_position + i / kTrimmedWords;
        const std::int64_t source_y = position / s.width % s.height + dy;
        const std::int64_t source_x = position % s.width + dx;
        const bool inside = position < positions && source_y >= 0 && source_y < s.height &&
                            source_x >= 0 && source_x < s.width;
        const std::int64_t pixel = position + dy * s.width + dx;
        shared.x[i / kTrimmedWords][i % kTrimmedWords] =
            inside
                ? load_word(a.x + pixel * s.in_channels + channel, s.in_channels - channel, aligned)
                : 0;
      }
      for (int i = thread; i < Tile::kOut * kTrimmedWords; i += kTrimmedThreads) {
        const int channel = first_channel + i % kTrimmedWords * 4;
        const int out = channels.first + i / kTrimmedWords;
        const std::int64_t window = std::int64_t{out} * taps + tap;
        shared.weight[i / kTrimmedWords][i % kTrimmedWords] =
            out < channels.end ? load_word(a.weight + window * s.in_channels + channel,
                                           s.in_channels - channel, aligned)
                               : 0;
      }
    });
    Block::sync();
    Block::each([&](int thread) {
      const int along = thread % Tile::kAlongPositions;
      const int across = thread / Tile::kAlongPositions * Tile::kThreadOut;
      for (int word = 0; word < kTrimmedWords; ++word) {
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kThreadPositions; ++i) {
          const std::uint32_t value = shared.x[along + i * Tile::kAlongPositions][word];
          PYCODEC_UNROLL
          for (int j = 0; j < Tile::kThreadOut; ++j) {
            acc[thread][i][j] = dot4(value, shared.weight[across + j][word], acc[thread][i][j]);
          }
        }
      }
    });
    Block::sync();
  }
  Block::each([&](int thread) {
    const int along = thread % Tile::kAlongPositions;
    const int across = thread / Tile::kAlongPositions * Tile::kThreadOut;
    PYCODEC_UNROLL
    for (int j = 0; j < Tile::kThreadOut; ++j) {
      const int out = channels.first + across + j;
      if (out >= channels.end) continue;
      PYCODEC_UNROLL
      for (int i = 0; i < Tile::kThreadPositions; ++i) {
        const std::int64_t position = first_position + along + i * Tile::kAlongPositions;
        if (position >= positions) continue;
        const std::int64_t place = position * s.out_channels + out;
        std::int64_t residual = 0;
        if (a.residual != nullptr) {
          residual = std::int64_t{a.residual[place]} * a.residual_multiplier[out];
        }
        const std::int32_t value =
            requantize(a.requantization, add(acc[thread][i][j], a.bias[out]), a.multiplier[out],
                       a.negative_multiplier[out], residual);
        a.out[place] = static_cast<std::uint8_t>(value);
      }
    }
  });
}

}  // namespace pycodec::cuda

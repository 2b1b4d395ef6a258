// What a block of threads does in the tensor-core kernel of quantized_conv2d.cu: an implicit matrix
// product, as in quantized_conv2d_tile.hpp, but of products of warps (mma.hpp) and with copies that
// run while earlier data are multiplied.
//
// The inner dimension is that of the weights' rows: taps of the window and, within a tap, chunks of
// 16 bytes of input channels (the last one of a tap is filled up with zeros). kMmaChunks of them
// are a stage; shared memory holds kMmaStages. In shared memory the chunks of row r are permuted by
// r, so that neither copies nor the loads of fragments meet in a bank.
//
// Where inputs or weights have 16 bits, both do in shared memory, and a fragment is the high or the
// low bytes of 32 of them. Which channel a byte of a fragment is does not matter as long as it is
// the same one in inputs and weights. Weights of 4 bits, and those of 8 bits for inputs of 16, are
// loaded to registers one stage ahead and widened on their way to shared memory.
//
// Sums pass through shared memory too: outputs and residuals are read and written in whole rows.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "cuda/block.hpp"
#include "cuda/mma.hpp"
#include "cuda/quantized_conv2d.hpp"
#include "cuda/quantized_conv2d_tile.hpp"

namespace pycodec::cuda {

constexpr int kMmaStages = 4;
constexpr int kMmaChunks = 4;   // of a row in a stage
constexpr int kMmaPadding = 8;  // of a row of sums: the quarters of a warp write to other banks
constexpr int kMmaAhead = 4;    // rows whose residuals are loaded at once
constexpr int kMmaGroup = 4;    // output channels that a thread writes at once

// kPositions x kOutputs outputs a block, kWarpPositions x kWarpOutputs of them a warp. The
// registers are for kBlocks blocks on a multiprocessor, or one less for types that need more of
// them.
template <int kPositions_, int kOutputs_, int kWarpPositions_, int kWarpOutputs_, int kBlocks_,
          bool kIsForWide_>
struct MmaTile {
  static constexpr int kBlocks = kBlocks_;
  static constexpr bool kIsForWide = kIsForWide_;  // for types of 16 bits too
  static constexpr int kPositions = kPositions_;
  static constexpr int kOutputs = kOutputs_;
  static constexpr int kWarpPositions = kWarpPositions_;
  static constexpr int kWarpOutputs = kWarpOutputs_;
  static constexpr int kWarpsAcross = kOutputs / kWarpOutputs;
  static constexpr int kThreads = kWarpSize * (kPositions / kWarpPositions) * kWarpsAcross;
  static constexpr int kAlong = kWarpPositions / 16;  // products of a warp
  static constexpr int kAcross = kWarpOutputs / 8;
  static constexpr int kRowsAtOnce = kThreads / kMmaChunks;  // that the threads copy
  static constexpr int kXRows = kPositions / kRowsAtOnce;
  static constexpr int kWeightRows = kOutputs / kRowsAtOnce;
  static_assert(kPositions % kRowsAtOnce == 0 && kOutputs % kRowsAtOnce == 0);
  static_assert(kAcross % 2 == 0);
};

template <bool kSigned_, int kXPlanes_, int kWeightBits_>
struct MmaTypes {
  static constexpr bool kSigned = kSigned_;
  static constexpr int kXPlanes = kXPlanes_;
  static constexpr int kWeightBits = kWeightBits_;
  static constexpr int kWeightPlanes = kWeightBits == 16 ? 2 : 1;
  static constexpr bool kWide = kXPlanes == 2 || kWeightPlanes == 2;
  static constexpr int kChannels = kWide ? 8 : 16;  // of a chunk
  static constexpr int kSteps = kWide ? 1 : 2;      // products along a stage
  // Of a chunk's channels in global memory. Those of 16 are copied as they are.
  static constexpr int kXBytes = kChannels * kXPlanes;
  static constexpr int kWeightBytes = kChannels * kWeightBits / 8;
};

struct alignas(8) MmaPair {
  std::int32_t values[2];
};

struct alignas(8) MmaResidual {
  std::int16_t values[kMmaGroup];
};

struct MmaChannels {
  std::int32_t bias[kMmaGroup], multiplier[kMmaGroup], negative_multiplier[kMmaGroup];
  std::int32_t residual_multiplier[kMmaGroup];
};

template <class Tile>
union alignas(128) MmaShared {
  struct {
    Chunk x[kMmaStages][Tile::kPositions][kMmaChunks];
    Chunk weight[kMmaStages][Tile::kOutputs][kMmaChunks];
  } stages;
  std::int32_t sums[Tile::kPositions][Tile::kOutputs + kMmaPadding];
};

PYCODEC_HOST_DEVICE inline bool is_aligned(const void* pointer, unsigned bytes) {
  return reinterpret_cast<std::uintptr_t>(pointer) % bytes == 0;
}

// Where chunk number `chunk` of a row is: eight rows at one chunk, or two rows, fill all banks.
PYCODEC_HOST_DEVICE inline int mma_place(int row, int chunk) {
  return chunk ^ (row / 2) % kMmaChunks;
}

// The window of an output: where its centre is in x, in bytes, and which of its rows and columns
// are inside the picture, in bits 0 and 16 and above; none of an output that does not exist.
struct MmaWindow {
  std::int64_t centre;
  std::uint32_t inside;
};

// The bits of `count` taps, of which number `centre` is at `position` of `size` positions.
PYCODEC_HOST_DEVICE inline std::uint32_t taps_inside(int position, int size, int count) {
  const int centre = count / 2;
  const std::uint32_t all = (1u << count) - 1;
  const std::uint32_t before = position < centre ? (1u << (centre - position)) - 1 : 0;
  const int room = size - 1 - position + centre;  // the number of the last tap inside
  return all & ~before & (room < count ? (2u << room) - 1 : all);
}

// A chunk of the inner dimension.
struct MmaCursor {
  int chunk, tap_y, tap_x;

  PYCODEC_HOST_DEVICE void advance(int by, int chunks, int kernel_width) {
    chunk += by;
    while (chunk >= chunks) {
      chunk -= chunks;
      if (++tap_x == kernel_width) {
        tap_x = 0;
        ++tap_y;
      }
    }
  }
};

// kBytes bytes from `first` on, of which `count` exist, the others are 0.
template <int kBytes>
PYCODEC_HOST_DEVICE inline void load_bytes(const std::int8_t* first, int count, bool aligned,
                                           std::uint32_t (&words)[kBytes / 4]) {
  PYCODEC_UNROLL
  for (int i = 0; i < kBytes / 4; ++i) words[i] = load_word(first + 4 * i, count - 4 * i, aligned);
}

// Four bytes as the low bytes of 16 bits each.
PYCODEC_HOST_DEVICE inline void spread_bytes(std::uint32_t bytes, std::uint32_t& first,
                                             std::uint32_t& second) {
  first = pick_bytes(bytes, 0, 0x4140);
  second = pick_bytes(bytes, 0, 0x4342);
}

// Eight weights of 4 bits as int8.
PYCODEC_HOST_DEVICE inline void unpack_halves(std::uint32_t packed, std::uint32_t& first,
                                              std::uint32_t& second) {
  std::uint32_t even = packed & 0x0F0F0F0F;
  std::uint32_t odd = packed >> 4 & 0x0F0F0F0F;
  even |= (even & 0x08080808) * 30;  // 8 * 30 is the upper half of a byte
  odd |= (odd & 0x08080808) * 30;
  first = pick_bytes(even, odd, 0x5140);
  second = pick_bytes(even, odd, 0x7362);
}

// A chunk of weights as it is multiplied from what is stored of it.
template <class Types>
PYCODEC_HOST_DEVICE inline Chunk widen_weights(
    const std::uint32_t (&stored)[Types::kWeightBytes / 4]) {
  Chunk chunk;
  std::uint32_t (&words)[4] = chunk.words;
  if constexpr (Types::kWeightBits == 4 && Types::kWide) {
    std::uint32_t first, second;
    unpack_halves(stored[0], first, second);
    spread_bytes(first, words[0], words[1]);
    spread_bytes(second, words[2], words[3]);
  } else if constexpr (Types::kWeightBits == 4) {
    unpack_halves(stored[0], words[0], words[1]);
    unpack_halves(stored[1], words[2], words[3]);
  } else {
    static_assert(Types::kWeightBits == 8 && Types::kWide);
    spread_bytes(stored[0], words[0], words[1]);
    spread_bytes(stored[1], words[2], words[3]);
  }
  return chunk;
}

// What cannot be copied as it is: kBytes bytes from `first` on, of which `count` exist, to a chunk
// in shared memory; if they are eight, each as the low byte of 16 bits. Rare, so its code is short.
template <int kBytes>
PYCODEC_HOST_DEVICE inline void load_chunk(const std::int8_t* first, int count, bool aligned,
                                           Chunk& target) {
  PYCODEC_KEEP_LOOP
  for (int i = 0; i < kBytes / 4; ++i) {
    const std::uint32_t word = load_word(first + 4 * i, count - 4 * i, aligned);
    if constexpr (kBytes == 16) {
      target.words[i] = word;
    } else {
      static_assert(kBytes == 8);
      spread_bytes(word, target.words[2 * i], target.words[2 * i + 1]);
    }
  }
}

// A chunk of what x is outside the picture, from `channel` on.
template <class Types>
PYCODEC_HOST_DEVICE inline Chunk load_outside(const std::int16_t* zero_point, int channel,
                                              int channels) {
  Chunk chunk = {};
  PYCODEC_UNROLL
  for (int i = 0; i < Types::kChannels; ++i) {
    if (channel + i >= channels) continue;
    const auto value = static_cast<std::uint16_t>(zero_point[channel + i]);
    if constexpr (Types::kWide) {
      chunk.words[i / 2] |= std::uint32_t{value} << (i % 2 * 16);
    } else {
      chunk.words[i / 4] |= static_cast<std::uint32_t>(value & 255) << (i % 4 * 8);
    }
  }
  return chunk;
}

// What a thread holds of a warp's inputs, and of the weights of 16 outputs.
template <class Types, class Tile>
using MmaInputs = std::uint32_t[Types::kXPlanes][Tile::kAlong][4];
template <class Types>
using MmaWeights = std::uint32_t[Types::kWeightPlanes][2][2];

// The planes of 32 values of 16 bits; those of one plane are low bytes.
template <int kPlanes>
PYCODEC_HOST_DEVICE inline std::uint32_t pick_plane(std::uint32_t first, std::uint32_t second,
                                                    int plane) {
  return pick_bytes(first, second, plane == kPlanes - 1 ? 0x6420 : 0x7531);
}

// The inputs at step `step` of a stage.
template <class Block, class Types, class Tile, class Inputs>
PYCODEC_DEVICE void load_input_fragments(const Chunk (&x)[Tile::kPositions][kMmaChunks], int step,
                                         Inputs& inputs) {
  PYCODEC_UNROLL
  for (int i = 0; i < Tile::kAlong; ++i) {
    // Matrices: the upper and the lower eight rows at one chunk, then both at the next one.
    const auto address = [&](int first_chunk) {
      return [&x, i, first_chunk](int thread) {
        const int warp = thread / kWarpSize / Tile::kWarpsAcross;
        const int row = warp * Tile::kWarpPositions + i * 16 + thread % 16;
        return &x[row][mma_place(row, first_chunk + thread % kWarpSize / 16)];
      };
    };
    if constexpr (Types::kWide) {
      typename Block::template PerThread<std::uint32_t[2][4]> pairs;
      PYCODEC_UNROLL
      for (int half = 0; half < 2; ++half) {
        Block::load_matrices(address(2 * half), [&](int thread) -> std::uint32_t (&)[4] {
          return pairs[thread][half];
        });
      }
      Block::each([&](int thread) {
        PYCODEC_UNROLL
        for (int plane = 0; plane < Types::kXPlanes; ++plane) {
          PYCODEC_UNROLL
          for (int r = 0; r < 4; ++r) {
            inputs[thread][plane][i][r] = pick_plane<Types::kXPlanes>(
                pairs[thread][r / 2][r % 2], pairs[thread][r / 2][r % 2 + 2], plane);
          }
        }
      });
    } else {
      Block::load_matrices(address(2 * step), [&](int thread) -> std::uint32_t (&)[4] {
        return inputs[thread][0][i];
      });
    }
  }
}

// The weights of a warp's outputs 8 j to 8 j + 15 at that step.
template <class Block, class Types, class Tile, class Weights>
PYCODEC_DEVICE void load_weight_fragments(const Chunk (&weight)[Tile::kOutputs][kMmaChunks],
                                          int step, int j, Weights& weights) {
  // Matrices: eight outputs at one chunk and at the next one, then the next eight.
  const auto address = [&](int first_chunk) {
    return [&weight, j, first_chunk](int thread) {
      const int warp = thread / kWarpSize % Tile::kWarpsAcross;
      const int lane = thread % kWarpSize;
      const int row = warp * Tile::kWarpOutputs + j * 8 + lane / 16 * 8 + lane % 8;
      return &weight[row][mma_place(row, first_chunk + lane / 8 % 2)];
    };
  };
  constexpr int kLoads = Types::kWide ? 2 : 1;
  typename Block::template PerThread<std::uint32_t[kLoads][4]> pairs;
  PYCODEC_UNROLL
  for (int half = 0; half < kLoads; ++half) {
    Block::load_matrices(address(2 * (step + half)),
                         [&](int thread) -> std::uint32_t (&)[4] { return pairs[thread][half]; });
  }
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int r = 0; r < 4; ++r) {
      if constexpr (Types::kWide) {
        PYCODEC_UNROLL
        for (int plane = 0; plane < Types::kWeightPlanes; ++plane) {
          weights[thread][plane][r / 2][r % 2] = pick_plane<Types::kWeightPlanes>(
              pairs[thread][r % 2][r / 2 * 2], pairs[thread][r % 2][r / 2 * 2 + 1], plane);
        }
      } else {
        weights[thread][0][r / 2][r % 2] = pairs[thread][0][r];
      }
    }
  });
}

// Adds a product of 16 x 32 inputs (number i of them) by 32 x 8 weights to its sums.
template <class Block, class Types, class Sums, class Inputs, class Weights>
PYCODEC_DEVICE void multiply_planes(int i, int j, Sums& sums, Inputs& inputs, Weights& weights) {
  constexpr int kXPlanes = Types::kXPlanes, kWeightPlanes = Types::kWeightPlanes;
  constexpr bool kLowSigned = kXPlanes == 1 && Types::kSigned;  // of the last plane of x
  constexpr bool kWeightSigned = kWeightPlanes == 1;            // of the last plane of weights
  const auto sum = [&](int thread) -> std::int32_t (&)[4] { return sums[thread][i][j]; };
  const auto x = [&](int plane) {
    return [&inputs, plane, i](int thread) -> const std::uint32_t (&)[4] {
      return inputs[thread][plane][i];
    };
  };
  const auto weight = [&](int plane) {
    return [&weights, plane, j](int thread) -> const std::uint32_t (&)[2] {
      return weights[thread][plane][j % 2];
    };
  };
  if constexpr (Types::kWide) {
    typename Block::template PerThread<std::int32_t[4]> high;
    const auto upper = [&](int thread) -> std::int32_t (&)[4] { return high[thread]; };
    Block::each([&](int thread) {
      for (int r = 0; r < 4; ++r) high[thread][r] = 0;
    });
    if constexpr (kXPlanes == 2 && kWeightPlanes == 2) {
      Block::template multiply<true, true>(upper, x(0), weight(0));
      Block::each([&](int thread) {
        for (int r = 0; r < 4; ++r) high[thread][r] = times_256(high[thread][r]);
      });
    }
    if constexpr (kXPlanes == 2) {
      Block::template multiply<true, kWeightSigned>(upper, x(0), weight(kWeightPlanes - 1));
    }
    if constexpr (kWeightPlanes == 2) {
      Block::template multiply<kLowSigned, true>(upper, x(kXPlanes - 1), weight(0));
    }
    Block::each([&](int thread) {
      for (int r = 0; r < 4; ++r) {
        sums[thread][i][j][r] = add(sums[thread][i][j][r], times_256(high[thread][r]));
      }
    });
  }
  Block::template multiply<kLowSigned, kWeightSigned>(sum, x(kXPlanes - 1),
                                                      weight(kWeightPlanes - 1));
}

// Four outputs of consecutive channels from their sums. Beyond a shift of 32 all after the product
// fits in 32 bits.
PYCODEC_HOST_DEVICE inline void requantize_group(const QuantizedConv2dArguments& a,
                                                 const Chunk& sums, const MmaChannels& channels,
                                                 const MmaResidual& residual,
                                                 std::int32_t (&values)[kMmaGroup]) {
  const std::int64_t half = std::int64_t{1} << (a.shift - 1);
  const bool scaled = a.scaled_residual != nullptr;
  PYCODEC_UNROLL
  for (int c = 0; c < kMmaGroup; ++c) {
    const std::int32_t sum = add(static_cast<std::int32_t>(sums.words[c]), channels.bias[c]);
    const std::int32_t multiplier =
        sum < 0 ? channels.negative_multiplier[c] : channels.multiplier[c];
    std::int64_t product = std::int64_t{sum} * multiplier + half;
    if (scaled) product += std::int64_t{residual.values[c]} * channels.residual_multiplier[c];
    const std::int32_t added = scaled ? 0 : residual.values[c];
    if (a.shift > 32) {
      const std::int32_t value =
          (static_cast<std::int32_t>(product >> 32) >> (a.shift - 32)) + added;
      values[c] = value < a.lower ? a.lower : value > a.upper ? a.upper : value;
    } else {
      const std::int64_t value = (product >> a.shift) + added;
      values[c] = value < a.lower   ? a.lower
                  : value > a.upper ? a.upper
                                    : static_cast<std::int32_t>(value);
    }
  }
}

PYCODEC_HOST_DEVICE inline MmaResidual load_residual(const std::int16_t* first) {
#ifdef __CUDA_ARCH__
  const short4 four = __ldg(reinterpret_cast<const short4*>(first));
  return {{four.x, four.y, four.z, four.w}};
#else
  return *reinterpret_cast<const MmaResidual*>(first);
#endif
}

PYCODEC_HOST_DEVICE inline MmaResidual load_residual(const std::int8_t* first) {
  const std::uint32_t word = *reinterpret_cast<const std::uint32_t*>(first);
  MmaResidual residual;
  PYCODEC_UNROLL
  for (int c = 0; c < kMmaGroup; ++c)
    residual.values[c] = static_cast<std::int8_t>(word >> (8 * c));
  return residual;
}

PYCODEC_HOST_DEVICE inline void store_group(void* out, std::int64_t index, int bytes,
                                            const std::int32_t (&values)[kMmaGroup]) {
  const auto word = [&](int i) { return static_cast<std::uint32_t>(values[i]); };
  if (bytes == 4) {
    *reinterpret_cast<Chunk*>(static_cast<std::int32_t*>(out) +
                              index) = {{word(0), word(1), word(2), word(3)}};
    return;
  }
  const std::uint32_t first = pick_bytes(word(0), word(1), 0x5410);
  const std::uint32_t second = pick_bytes(word(2), word(3), 0x5410);
  if (bytes == 2) {
    *reinterpret_cast<std::uint64_t*>(static_cast<std::int16_t*>(out) + index) =
        std::uint64_t{second} << 32 | first;
  } else {
    *reinterpret_cast<std::uint32_t*>(static_cast<std::int8_t*>(out) + index) =
        pick_bytes(first, second, 0x6420);
  }
}

// The end of a block: what is in `sums` to outputs.
template <class Block, class Tile, class Sums>
PYCODEC_DEVICE void store_sums(const QuantizedConv2dArguments& a, std::uint32_t positions,
                               std::uint32_t first_position, int first_out, const Sums& sums) {
  constexpr int kGroups = Tile::kOutputs / kMmaGroup;
  constexpr int kRowsAtOnce = Tile::kThreads / kGroups;
  const int channels = a.out_channels / (a.upscale * a.upscale);
  const bool in_groups = channels % kMmaGroup == 0 && is_aligned(a.out, 16) &&
                         is_aligned(a.residual, 8) && is_aligned(a.scaled_residual, 4);
  const std::int32_t* const negative_multiplier =
      a.negative_multiplier == nullptr ? a.multiplier : a.negative_multiplier;
  Block::each([&](int thread) {
    const int column = thread % kGroups * kMmaGroup;
    const int out = first_out + column;
    if (thread >= kGroups * kRowsAtOnce || out >= a.out_channels) return;
    if (!in_groups) {
      for (int row = thread / kGroups; row < Tile::kPositions; row += kRowsAtOnce) {
        const std::uint32_t position = first_position + static_cast<unsigned>(row);
        for (int c = 0; c < kMmaGroup && out + c < a.out_channels; ++c) {
          if (position < positions) store_sum(a, position, out + c, sums[row][column + c]);
        }
      }
      return;
    }
    MmaChannels group;
    PYCODEC_UNROLL
    for (int c = 0; c < kMmaGroup; ++c) {
      group.bias[c] = a.bias[out + c];
      group.multiplier[c] = a.multiplier[out + c];
      group.negative_multiplier[c] = negative_multiplier[out + c];
      group.residual_multiplier[c] =
          a.scaled_residual == nullptr ? 0 : a.residual_multiplier[out + c];
    }
    for (int first = thread / kGroups; first < Tile::kPositions; first += kRowsAtOnce * kMmaAhead) {
      MmaResidual residual[kMmaAhead] = {};
      const auto exists = [&](int i) {
        const int row = first + i * kRowsAtOnce;
        return row < Tile::kPositions && first_position + static_cast<unsigned>(row) < positions;
      };
      const auto load_residuals = [&](const auto* values) {
        if (values == nullptr) return;
        PYCODEC_UNROLL
        for (int i = 0; i < kMmaAhead; ++i) {
          const std::int64_t position = first_position + static_cast<unsigned>(first) +
                                        static_cast<unsigned>(i * kRowsAtOnce);
          if (exists(i)) residual[i] = load_residual(values + position * a.out_channels + out);
        }
      };
      load_residuals(a.residual);
      load_residuals(a.scaled_residual);
      PYCODEC_UNROLL
      for (int i = 0; i < kMmaAhead; ++i) {
        if (!exists(i)) continue;
        const int row = first + i * kRowsAtOnce;
        std::int32_t values[kMmaGroup];
        requantize_group(a, *reinterpret_cast<const Chunk*>(&sums[row][column]), group, residual[i],
                         values);
        const std::uint32_t position = first_position + static_cast<unsigned>(row);
        store_group(a.out, output_index(a, position, out), a.out_bytes, values);
      }
    }
  });
}

template <class Block, class Types, class Tile>
PYCODEC_DEVICE void quantized_conv2d_mma_block(const QuantizedConv2dArguments& a,
                                               std::uint32_t block, MmaShared<Tile>& shared) {
  const auto out_width = static_cast<std::uint32_t>(a.out_width());
  const auto out_height = static_cast<std::uint32_t>(a.out_height());
  const std::uint32_t positions = static_cast<std::uint32_t>(a.batch) * out_height * out_width;
  const auto tiles_across =
      static_cast<std::uint32_t>((a.out_channels + Tile::kOutputs - 1) / Tile::kOutputs);
  const std::uint32_t first_position = block / tiles_across * Tile::kPositions;
  const int first_out = static_cast<int>(block % tiles_across) * Tile::kOutputs;
  const int height = static_cast<int>(a.height), width = static_cast<int>(a.width);
  const int chunks = (a.in_channels + Types::kChannels - 1) / Types::kChannels;
  const int taps = a.kernel_height * a.kernel_width;
  const int stages = (taps * chunks + kMmaChunks - 1) / kMmaChunks;

  const auto* const x_bytes = static_cast<const std::int8_t*>(a.x);
  const auto* const weight_bytes = static_cast<const std::int8_t*>(a.weight);
  const int x_row = a.in_channels * Types::kXPlanes;  // bytes, as are these:
  const int weight_row = (a.in_channels * Types::kWeightBits + 7) / 8;
  constexpr bool kCopyWeights = Types::kWeightBytes == 16;
  const bool x_aligned = x_row % 4 == 0 && is_aligned(a.x, 4);
  const bool weight_aligned = weight_row % 4 == 0 && is_aligned(a.weight, 4);
  const bool copy_x = Types::kXBytes == 16 && x_row % 16 == 0 && is_aligned(a.x, 16);
  const bool copy_weight = kCopyWeights && weight_row % 16 == 0 && is_aligned(a.weight, 16);

  typename Block::template PerThread<MmaWindow[Tile::kXRows]> windows;
  typename Block::template PerThread<MmaCursor> cursors, weight_cursors;
  typename Block::template PerThread<std::uint32_t[Tile::kWeightRows][Types::kWeightBytes / 4]>
      stored;  // weights of the next stage, if they are not copied
  typename Block::template PerThread<std::int32_t[Tile::kAlong][Tile::kAcross][4]> sums;
  Block::each([&](int thread) {
    PYCODEC_UNROLL
    for (int i = 0; i < Tile::kXRows; ++i) {
      const int row = thread / kMmaChunks + i * Tile::kRowsAtOnce;
      const std::uint32_t position = first_position + static_cast<unsigned>(row);
      MmaWindow& window = windows[thread][i];
      if (position >= positions) {
        window = {0, 0};
      } else if (taps == 1 && a.stride == 1) {
        window = {std::int64_t{position} * x_row, 1 | 1 << 16};
      } else {
        const std::uint32_t line = position / out_width;
        const std::uint32_t image = line / out_height;
        const int y = static_cast<int>(line - image * out_height) * a.stride;
        const int x = static_cast<int>(position - line * out_width) * a.stride;
        const std::int64_t pixel = (std::int64_t{image} * height + y) * width + x;
        window = {pixel * x_row, taps_inside(y, height, a.kernel_height) |
                                     taps_inside(x, width, a.kernel_width) << 16};
      }
    }
    cursors[thread] = {0, 0, 0};
    cursors[thread].advance(thread % kMmaChunks, chunks, a.kernel_width);
    weight_cursors[thread] = cursors[thread];
    PYCODEC_UNROLL
    for (int i = 0; i < Tile::kAlong; ++i) {
      PYCODEC_UNROLL
      for (int j = 0; j < Tile::kAcross; ++j) {
        PYCODEC_UNROLL
        for (int r = 0; r < 4; ++r) sums[thread][i][j][r] = 0;
      }
    }
  });

  // A thread's chunks of a stage are at one place of the inner dimension, where its cursor is.
  const std::int64_t weight_bytes_of_output = std::int64_t{taps} * weight_row;
  const auto weights_at = [&](const MmaCursor& cursor, int row) {
    const int tap = cursor.tap_y * a.kernel_width + cursor.tap_x;
    return weight_bytes + (first_out + row) * weight_bytes_of_output +
           (tap * weight_row + cursor.chunk * Types::kWeightBytes);
  };
  const auto weight_exists = [&](const MmaCursor& cursor, int row) {
    return cursor.tap_y < a.kernel_height && first_out + row < a.out_channels;
  };
  const auto fetch_weights = [&] {
    Block::each([&](int thread) {
      MmaCursor& cursor = weight_cursors[thread];
      const int left = weight_row - cursor.chunk * Types::kWeightBytes;
      PYCODEC_UNROLL
      for (int i = 0; i < Tile::kWeightRows; ++i) {
        const int row = thread / kMmaChunks + i * Tile::kRowsAtOnce;
        load_bytes<Types::kWeightBytes>(weights_at(cursor, row),
                                        weight_exists(cursor, row) ? left : 0, weight_aligned,
                                        stored[thread][i]);
      }
      cursor.advance(kMmaChunks, chunks, a.kernel_width);
    });
  };
  const auto load_stage = [&](int slot) {
    Block::each([&](int thread) {
      MmaCursor& cursor = cursors[thread];
      const int column = thread % kMmaChunks;
      const bool exists = cursor.tap_y < a.kernel_height;
      const int dy = cursor.tap_y - a.kernel_height / 2;
      const int dx = cursor.tap_x - a.kernel_width / 2;
      const int channel = cursor.chunk * Types::kChannels;
      const std::int64_t from_centre =
          std::int64_t{dy * width + dx} * x_row + channel * Types::kXPlanes;
      // Past the last tap this has a bit that no window has.
      const std::uint32_t tap = 1u << cursor.tap_y | 1u << (16 + cursor.tap_x);
      bool inside[Tile::kXRows], all_inside = true;
      PYCODEC_UNROLL
      for (int i = 0; i < Tile::kXRows; ++i) {
        inside[i] = (windows[thread][i].inside & tap) == tap;
        all_inside = all_inside && inside[i];
      }
      const std::int8_t* const source = x_bytes + from_centre;
      const int first_row = thread / kMmaChunks;
      const int place = mma_place(first_row, column);  // as of the other rows
      static_assert(Tile::kRowsAtOnce % (2 * kMmaChunks) == 0);
      const auto x_target = [&](int i) {
        return &shared.stages.x[slot][first_row + i * Tile::kRowsAtOnce][place];
      };
      const bool fill = a.zero_point != nullptr && exists && !all_inside;
      if (copy_x) {
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kXRows; ++i) {
          Block::copy_async(x_target(i), source + windows[thread][i].centre, inside[i],
                            inside[i] || !fill);
        }
      } else {
        const int left = x_row - channel * Types::kXPlanes;
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kXRows; ++i) {
          load_chunk<Types::kXBytes>(source + windows[thread][i].centre, inside[i] ? left : 0,
                                     x_aligned, *x_target(i));
        }
      }
      if (fill) {
        const Chunk outside = load_outside<Types>(a.zero_point, channel, a.in_channels);
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kXRows; ++i) {
          if (!inside[i]) *x_target(i) = outside;
        }
      }
      const auto weight_target = [&](int i) {
        return &shared.stages.weight[slot][first_row + i * Tile::kRowsAtOnce][place];
      };
      if constexpr (!kCopyWeights) {
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kWeightRows; ++i) {
          *weight_target(i) = widen_weights<Types>(stored[thread][i]);
        }
      } else if (copy_weight) {
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kWeightRows; ++i) {
          const int row = first_row + i * Tile::kRowsAtOnce;
          Block::copy_async(weight_target(i), weights_at(cursor, row), weight_exists(cursor, row));
        }
      } else {
        const int left = weight_row - cursor.chunk * Types::kWeightBytes;
        PYCODEC_UNROLL
        for (int i = 0; i < Tile::kWeightRows; ++i) {
          const int row = first_row + i * Tile::kRowsAtOnce;
          load_chunk<16>(weights_at(cursor, row), weight_exists(cursor, row) ? left : 0,
                         weight_aligned, *weight_target(i));
        }
      }
      cursor.advance(kMmaChunks, chunks, a.kernel_width);
    });
    if constexpr (!kCopyWeights) fetch_weights();
  };

  if constexpr (!kCopyWeights) fetch_weights();
  for (int stage = 1 - kMmaStages; stage < stages; ++stage) {
    if (stage >= 0) {
      Block::template wait<kMmaStages - 2>();
      Block::sync();  // and everyone is done with the slot that is loaded now
    }
    const int next = stage + kMmaStages - 1;
    if (next < stages) load_stage(next % kMmaStages);
    Block::commit();
    if (stage < 0) continue;
    const int slot = stage % kMmaStages;
    PYCODEC_UNROLL
    for (int step = 0; step < Types::kSteps; ++step) {
      typename Block::template PerThread<MmaInputs<Types, Tile>> inputs;
      load_input_fragments<Block, Types, Tile>(shared.stages.x[slot], step, inputs);
      PYCODEC_UNROLL
      for (int first = 0; first < Tile::kAcross; first += 2) {
        typename Block::template PerThread<MmaWeights<Types>> weights;
        load_weight_fragments<Block, Types, Tile>(shared.stages.weight[slot], step, first, weights);
        PYCODEC_UNROLL
        for (int j = first; j < first + 2; ++j) {
          PYCODEC_UNROLL
          for (int i = 0; i < Tile::kAlong; ++i) {
            multiply_planes<Block, Types>(i, j, sums, inputs, weights);
          }
        }
      }
    }
  }

  Block::template wait<0>();
  Block::sync();
  Block::each([&](int thread) {
    const int warp = thread / kWarpSize;
    const int lane = thread % kWarpSize;
    PYCODEC_UNROLL
    for (int i = 0; i < Tile::kAlong; ++i) {
      PYCODEC_UNROLL
      for (int j = 0; j < Tile::kAcross; ++j) {
        PYCODEC_UNROLL
        for (int half = 0; half < 2; ++half) {
          const int row =
              warp / Tile::kWarpsAcross * Tile::kWarpPositions + i * 16 + half * 8 + lane / 4;
          const int column = warp % Tile::kWarpsAcross * Tile::kWarpOutputs + j * 8 + lane % 4 * 2;
          *reinterpret_cast<MmaPair*>(&shared.sums[row][column]) = {
              {sums[thread][i][j][2 * half], sums[thread][i][j][2 * half + 1]}};
        }
      }
    }
  });
  Block::sync();
  store_sums<Block, Tile>(a, positions, first_position, first_out, shared.sums);
}

// Calls run(tile, types) with an MmaTile for a kernel that is not kDp4a, and MmaTypes.
template <class Run>
void dispatch_mma(const QuantizedConv2dArguments& a, ConvKernel kernel, const Run& run) {
  const auto with_tile = [&](auto tile) {
    using Tile = decltype(tile);
    dispatch_types(a, [&](auto is_signed, auto x_planes, auto weight_bits) {
      using Types = MmaTypes<is_signed(), x_planes(), weight_bits()>;
      if constexpr (!Types::kWide || Tile::kIsForWide) {
        run(Tile(), Types());
      } else {
        throw std::runtime_error("quantized_conv2d: this kernel is not for 16 bits");
      }
    });
  };
  switch (kernel) {
    case ConvKernel::kMma128x96:
      return with_tile(MmaTile<128, 96, 64, 48, 3, false>());
    case ConvKernel::kMma128x64:
      return with_tile(MmaTile<128, 64, 64, 32, 3, true>());
    default:
      return with_tile(MmaTile<64, 32, 32, 16, 6, true>());
  }
}

// Blocks on a multiprocessor whose registers have to be there.
template <class Types, class Tile>
constexpr int mma_blocks_at_once() {
  const bool keeps_weights = Types::kWeightBytes != 16 && Tile::kWeightRows > 2;
  return Tile::kBlocks - (Types::kWide || keeps_weights);
}

// Blocks of a tile for all outputs.
template <class Tile>
std::int64_t mma_blocks(const QuantizedConv2dArguments& a) {
  const std::int64_t positions = a.batch * a.out_height() * a.out_width();
  return (positions + Tile::kPositions - 1) / Tile::kPositions *
         ((a.out_channels + Tile::kOutputs - 1) / Tile::kOutputs);
}

}  // namespace pycodec::cuda

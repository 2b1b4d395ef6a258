// The micro kernel of the float trimmed convolution, for any vector type. Only plain structs,
// templates of internal linkage and functions with it: see simd_level.hpp.
//
// A vector is some neighbouring positions of a row. A block of output channels x vectors stays in
// registers while the kernel walks once through the taps that the channels see: a tap is an offset
// into the padded input, from the position's own place, and a weight for each channel. What is
// trimmed is in no list.
#pragma once

#include <cstdint>

namespace pycodec {

// Output channels with the same taps, as many as a block holds at most.
struct FloatTrimmedChunk {
  int channels;
  std::int64_t num_taps;
  const std::int32_t* offsets;  // [num_taps]
  const float* weights;         // [num_taps][channels]
  const float* bias;            // [channels]
};

struct FloatTrimmedKernel {
  const char* name;
  int lanes;         // positions to a vector
  int max_channels;  // to a chunk
  // out[c * out_stride + p] for all channels and positions. Reads x and writes out up to the next
  // multiple of `lanes` positions.
  void (*run)(const FloatTrimmedChunk& chunk, const float* x, std::int64_t positions, float* out,
              std::int64_t out_stride);
};

extern const FloatTrimmedKernel kFloatTrimmedKernelScalar;
extern const FloatTrimmedKernel kFloatTrimmedKernelAvx2;
extern const FloatTrimmedKernel kFloatTrimmedKernelAvx512Vnni;

namespace {

template <class V, int Channels, int Vectors>
void run_float_trimmed_block(const FloatTrimmedChunk& chunk, const float* x, float* out,
                             std::int64_t out_stride) {
  typename V::Vector acc[Channels][Vectors];
#pragma GCC unroll 16
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) acc[c][v] = V::broadcast(chunk.bias + c);
  }
  const float* w = chunk.weights;
  for (std::int64_t tap = 0; tap < chunk.num_taps; ++tap, w += Channels) {
    const float* seen = x + chunk.offsets[tap];
    // The shorter side waits in registers.
    if constexpr (Vectors <= Channels) {
      typename V::Vector values[Vectors];
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) values[v] = V::load(seen + v * V::kLanes);
#pragma GCC unroll 16
      for (int c = 0; c < Channels; ++c) {
        const typename V::Vector weight = V::broadcast(w + c);
#pragma GCC unroll 16
        for (int v = 0; v < Vectors; ++v) {
          acc[c][v] = V::multiply_add(values[v], weight, acc[c][v]);
        }
      }
    } else {
      typename V::Vector weights[Channels];
#pragma GCC unroll 16
      for (int c = 0; c < Channels; ++c) weights[c] = V::broadcast(w + c);
#pragma GCC unroll 16
      for (int v = 0; v < Vectors; ++v) {
        const typename V::Vector value = V::load(seen + v * V::kLanes);
#pragma GCC unroll 16
        for (int c = 0; c < Channels; ++c) {
          acc[c][v] = V::multiply_add(value, weights[c], acc[c][v]);
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) V::store(out + c * out_stride + v * V::kLanes, acc[c][v]);
  }
}

// Blocks of at most Vectors vectors, from `position` on; the last may be smaller.
template <class V, int Channels, int Vectors>
void run_float_trimmed_positions(const FloatTrimmedChunk& chunk, const float* x,
                                 std::int64_t position, std::int64_t positions, float* out,
                                 std::int64_t out_stride) {
  for (; positions - position > (Vectors - 1) * V::kLanes; position += Vectors * V::kLanes) {
    run_float_trimmed_block<V, Channels, Vectors>(chunk, x + position, out + position, out_stride);
  }
  if constexpr (Vectors > 1) {
    run_float_trimmed_positions<V, Channels, Vectors - 1>(chunk, x, position, positions, out,
                                                          out_stride);
  }
}

// V::kVectors[c - 1] is the number of vectors in a block of c channels.
template <class V, int Channels = 1>
void run_float_trimmed(const FloatTrimmedChunk& chunk, const float* x, std::int64_t positions,
                       float* out, std::int64_t out_stride) {
  if constexpr (Channels < V::kMaxChannels) {
    if (chunk.channels > Channels) {
      return run_float_trimmed<V, Channels + 1>(chunk, x, positions, out, out_stride);
    }
  }
  run_float_trimmed_positions<V, Channels, V::kVectors[Channels - 1]>(chunk, x, 0, positions, out,
                                                                      out_stride);
}

}  // namespace
}  // namespace pycodec

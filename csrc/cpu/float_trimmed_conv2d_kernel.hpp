// The micro kernel of the float trimmed convolution, for any vector type. Only plain structs,
// templates of internal linkage and functions with it: see simd_level.hpp.
//
// A vector is some neighbouring positions of a row. A block of output channels x vectors stays in
// registers while the kernel walks once through the taps that all of the channels see: a tap is an
// offset into the padded input, from the position's own place, and a weight for each channel. What
// is trimmed is in no list.
#pragma once

#include <cstdint>

namespace pycodec {

// Some taps of neighbouring output channels, as many as a block holds at most.
struct FloatTrimmedPass {
  int channels;
  std::int64_t num_taps;
  const std::int32_t* offsets;  // [num_taps]
  const float* weights;         // [num_taps][channels]
  const float* bias;            // [channels], or null: adds to what is in `out`
};

struct FloatTrimmedKernel {
  const char* name;
  int lanes;         // positions to a vector
  int max_channels;  // to a pass
  // out[c * out_stride + p] for all channels and positions. Reads x and writes out up to the next
  // multiple of `lanes` positions.
  void (*run)(const FloatTrimmedPass& pass, const float* x, std::int64_t positions, float* out,
              std::int64_t out_stride);
};

extern const FloatTrimmedKernel kFloatTrimmedKernelScalar;
extern const FloatTrimmedKernel kFloatTrimmedKernelAvx2;
extern const FloatTrimmedKernel kFloatTrimmedKernelAvx512Vnni;

namespace {

template <class V, int Channels, int Vectors>
void run_float_trimmed_block(const FloatTrimmedPass& pass, const float* x, float* out,
                             std::int64_t out_stride) {
  typename V::Vector acc[Channels][Vectors];
#pragma GCC unroll 16
  for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 16
    for (int v = 0; v < Vectors; ++v) {
      acc[c][v] =
          pass.bias ? V::broadcast(pass.bias + c) : V::load(out + c * out_stride + v * V::kLanes);
    }
  }
  const float* w = pass.weights;
  for (std::int64_t tap = 0; tap < pass.num_taps; ++tap, w += Channels) {
    const float* seen = x + pass.offsets[tap];
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
void run_float_trimmed_positions(const FloatTrimmedPass& pass, const float* x,
                                 std::int64_t position, std::int64_t positions, float* out,
                                 std::int64_t out_stride) {
  for (; positions - position > (Vectors - 1) * V::kLanes; position += Vectors * V::kLanes) {
    run_float_trimmed_block<V, Channels, Vectors>(pass, x + position, out + position, out_stride);
  }
  if constexpr (Vectors > 1) {
    run_float_trimmed_positions<V, Channels, Vectors - 1>(pass, x, position, positions, out,
                                                          out_stride);
  }
}

// V::kVectors[c - 1] is the number of vectors in a block of c channels.
template <class V, int Channels = 1>
void run_float_trimmed(const FloatTrimmedPass& pass, const float* x, std::int64_t positions,
                       float* out, std::int64_t out_stride) {
  if constexpr (Channels < V::kMaxChannels) {
    if (pass.channels > Channels) {
      return run_float_trimmed<V, Channels + 1>(pass, x, positions, out, out_stride);
    }
  }
  run_float_trimmed_positions<V, Channels, V::kVectors[Channels - 1]>(pass, x, 0, positions, out,
                                                                      out_stride);
}

}  // namespace
}  // namespace pycodec

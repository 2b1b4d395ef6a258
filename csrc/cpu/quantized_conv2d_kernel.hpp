// What the SIMD variants of the integer convolution have in common. Only plain structs and
// functions with internal linkage: see simd_level.hpp.
//
// The input was copied into a frame of padding, channels last, so the window of an output position
// is kernel_height runs of memory, each of kernel_width * channels values. A convolution then is a
// matrix product: (positions x window) times (window x output channels). A kernel holds a tile of
// it (some positions x some vectors of output channels) in registers and walks once through the
// window:
//
//   for each window row
//     for each group of channels in the row          2 (int16) or 4 (int8) values, one instruction
//       load the weights of the group                one vector for each vector of output channels
//       for each position: broadcast the group, multiply and add
//
// Weights lie in the order of use: [chunk][window row][group][vector][output channel][in group].
//
// Kernels of bytes read int16 inputs as two planes, of high and of low bytes: once they have walked
// through the first, they multiply the accumulators by 256 and walk through the second. The same
// goes for int16 weights.
#pragma once

#include <cstdint>

namespace pycodec {

enum class OutputType { kUint8, kInt8, kInt16, kInt32 };

// out = clamp(((acc * multiplier + 2^(shift - 1)) >> shift) + residual, lower, upper), in 64 bits.
struct Requantization {
  int shift;
  std::int32_t lower, upper;
};

struct ConvLayer {
  int out_channels;
  int vectors;      // vectors of output channels, the last perhaps in part beyond out_channels
  int window_rows;  // the kernel's height
  int row_groups;   // groups of channels in a window row
  const std::uint8_t* weights;
  int weight_planes;                 // 2 where weights are int16 and the kernel reads bytes:
  std::int64_t weight_plane_stride;  // high bytes, signed, and then low ones, unsigned
  const std::int32_t* bias;
  const std::int32_t* multiplier;
  Requantization requantization;
  OutputType output_type;
};

struct ConvTile {
  const std::uint8_t* const* windows;  // where the window of each position starts
  int positions;
  std::int64_t row_stride;               // bytes from one window row to the next
  int planes;                            // 2 where inputs are int16 and the kernel reads bytes
  std::int64_t plane_stride;             // bytes from a window to the same of the low bytes
  std::uint8_t* const* outs;             // where the channels of each position go
  const std::int16_t* const* residuals;  // what is added to them; null if nothing is
};

struct ConvKernel {
  const char* name;
  int value_bytes;        // of inputs and weights: 2 is int16, 1 is uint8 (int8 x becomes x + 128)
  int group;              // input channels to a multiply-add instruction
  int lanes;              // output channels to a vector
  int max_chunk_vectors;  // vectors of output channels in a register tile, at most
  int row_bytes;          // a window row of weights is filled up with zeros to a multiple of this
  int tile_positions;     // positions of a unit of work
  bool tile_in_row;       // whose windows must lie at equal distances: in one row of the output
  void (*run)(const ConvLayer&, const ConvTile&);
};

extern const ConvKernel kConvKernelScalar;
extern const ConvKernel kConvKernelAvx2;
extern const ConvKernel kConvKernelAvx512Vnni;
extern const ConvKernel kConvKernelAvx512VnniWide;  // for int16 weights
extern const ConvKernel kConvKernelAmx;

// The number of vectors in the chunk that starts at vector `first`: chunks are of even size, as far
// as that goes (6 vectors, 4 at most: 3 + 3).
static inline int chunk_vectors(int first, int vectors, int max_chunk_vectors) {
  const int left = vectors - first;
  const int chunks_left = (left + max_chunk_vectors - 1) / max_chunk_vectors;
  return (left + chunks_left - 1) / chunks_left;
}

static inline int output_bytes(OutputType type) {
  return type == OutputType::kInt32 ? 4 : type == OutputType::kInt16 ? 2 : 1;
}

// Stores a value that is in the range of `type` as out[index].
static inline void store_output(OutputType type, std::uint8_t* out, std::int64_t index,
                                std::int32_t value) {
  switch (type) {
    case OutputType::kInt32:
      reinterpret_cast<std::int32_t*>(out)[index] = value;
      break;
    case OutputType::kInt16:
      reinterpret_cast<std::int16_t*>(out)[index] = static_cast<std::int16_t>(value);
      break;
    default:
      out[index] = static_cast<std::uint8_t>(value);
  }
}

}  // namespace pycodec

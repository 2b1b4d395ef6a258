// The portable variant, in vectors of GCC and Clang, which every processor has or does without.
// Accumulators wrap modulo 2^32, as everywhere.
#include "cpu/quantized_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

constexpr int kPositions = 8;  // to a vector

using Shorts __attribute__((vector_size(2 * kPositions))) = std::int16_t;
using Ints __attribute__((vector_size(4 * kPositions))) = std::int32_t;
using Unsigned __attribute__((vector_size(4 * kPositions))) = std::uint32_t;

void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, std::int64_t position, int vector,
              const std::int8_t* weights, std::int64_t input_step) {
  const std::int64_t left = tile.positions - position;
  const int positions = left < kPositions ? static_cast<int>(left) : kPositions;
  const int first = vector * kTrimmedLanes;
  const int channels = layer.width - first < kTrimmedLanes ? layer.width - first : kTrimmedLanes;
  Unsigned acc[kTrimmedLanes] = {};
  for (int i = 0; i < layer.num_inputs; ++i, weights += input_step) {
    const std::uint8_t* window = tile.window + position * tile.window_step + layer.inputs[i];
    Shorts x[kTrimmedGroup] = {};
    for (int p = 0; p < positions; ++p, window += tile.window_step) {
      for (int k = 0; k < kTrimmedGroup; ++k) x[k][p] = window[k];
    }
    for (int lane = 0; lane < channels; ++lane) {
      for (int k = 0; k < kTrimmedGroup; ++k) {
        // 255 * -128 fits in 16 bits.
        const Shorts products = x[k] * std::int16_t{weights[lane * kTrimmedGroup + k]};
        acc[lane] += reinterpret_cast<Unsigned>(__builtin_convertvector(products, Ints));
      }
    }
  }
  for (int p = 0; p < positions; ++p) {
    const std::uint8_t* residual =
        tile.residual ? tile.residual + (position + p) * tile.residual_step : nullptr;
    std::uint8_t* out = tile.out + (position + p) * tile.out_step;
    for (int lane = 0; lane < channels; ++lane) {
      const std::uint32_t sum = acc[lane][p] + static_cast<std::uint32_t>(layer.bias[first + lane]);
      out[first + lane] =
          trimmed_output(layer, first + lane, static_cast<std::int32_t>(sum), residual);
    }
  }
}

}  // namespace

void run_trimmed_scalar(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    const std::int64_t input_step = std::int64_t{vectors} * kTrimmedLanes * kTrimmedGroup;
    for (int v = 0; v < vectors; ++v) {
      for (std::int64_t position = 0; position < tile.positions; position += kPositions) {
        run_tile(layer, tile, position, first + v, weights + v * kTrimmedLanes * kTrimmedGroup,
                 input_step);
      }
    }
    weights += layer.num_inputs * input_step;
  }
}

}  // namespace pycodec

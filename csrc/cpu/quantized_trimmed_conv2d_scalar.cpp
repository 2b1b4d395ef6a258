// The portable variant. Accumulators wrap modulo 2^32, as everywhere.
#include "cpu/quantized_trimmed_conv2d_kernel.hpp"

namespace pycodec {
namespace {

// The positions are the inner loop: a fixed number of them, which compilers turn into vectors.
constexpr int kPositions = 8;

void run_tile(const TrimmedLayer& layer, const TrimmedTile& tile, std::int64_t position, int vector,
              const std::int8_t* weights, std::int64_t input_step) {
  const std::int64_t left = tile.positions - position;
  const int positions = left < kPositions ? static_cast<int>(left) : kPositions;
  const int first = vector * kTrimmedLanes;
  const int channels = layer.width - first < kTrimmedLanes ? layer.width - first : kTrimmedLanes;
  std::uint32_t acc[kTrimmedLanes][kPositions] = {};
  for (int i = 0; i < layer.num_inputs; ++i, weights += input_step) {
    const std::uint8_t* window = tile.window + position * tile.window_step + layer.inputs[i];
    std::int16_t x[kTrimmedGroup][kPositions] = {};
    for (int p = 0; p < positions; ++p, window += tile.window_step) {
      for (int k = 0; k < kTrimmedGroup; ++k) x[k][p] = window[k];
    }
    for (int lane = 0; lane < channels; ++lane) {
      const std::int8_t* w = weights + lane * kTrimmedGroup;
      for (int p = 0; p < kPositions; ++p) {
        acc[lane][p] +=
            static_cast<std::uint32_t>(x[0][p] * std::int16_t{w[0]} + x[1][p] * std::int16_t{w[1]} +
                                       x[2][p] * std::int16_t{w[2]} + x[3][p] * std::int16_t{w[3]});
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

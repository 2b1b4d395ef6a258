// The portable variant. Accumulators wrap modulo 2^32, as everywhere.
#include "cpu/trimmed_conv2d_kernel.hpp"

namespace pycodec {

void run_trimmed_scalar(const TrimmedLayer& layer, const TrimmedTile& tile) {
  const std::int8_t* weights = layer.weights;
  for (int first = 0; first < layer.vectors; first += kTrimmedMaxVectors) {
    const int left = layer.vectors - first;
    const int vectors = left < kTrimmedMaxVectors ? left : kTrimmedMaxVectors;
    const int lanes = vectors * kTrimmedLanes;
    const std::int8_t* chunk_end = weights;
    for (int position = 0; position < tile.positions; ++position) {
      std::uint32_t acc[kTrimmedMaxVectors * kTrimmedLanes];
      for (int lane = 0; lane < lanes; ++lane) {
        acc[lane] = static_cast<std::uint32_t>(layer.bias[first * kTrimmedLanes + lane]);
      }
      const std::int8_t* w = weights;
      for (int s = 0; s < layer.num_segments; ++s) {
        const std::uint8_t* x = tile.windows[position] + layer.segments[s].offset;
        for (int group = 0; group < layer.segments[s].groups; ++group, x += kTrimmedGroup) {
          for (int lane = 0; lane < lanes; ++lane, w += kTrimmedGroup) {
            acc[lane] +=
                static_cast<std::uint32_t>(x[0] * w[0] + x[1] * w[1] + x[2] * w[2] + x[3] * w[3]);
          }
        }
      }
      chunk_end = w;
      const std::uint8_t* residual = tile.residuals ? tile.residuals[position] : nullptr;
      for (int lane = 0; lane < lanes && first * kTrimmedLanes + lane < layer.width; ++lane) {
        const int channel = first * kTrimmedLanes + lane;
        tile.outs[position][channel] =
            trimmed_output(layer, channel, static_cast<std::int32_t>(acc[lane]), residual);
      }
    }
    weights = chunk_end;
  }
}

}  // namespace pycodec
